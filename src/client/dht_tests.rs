//! Tests of clients that find each other through a DHT of their own and nothing else; and of what is said there of private
//! torrents: nothing.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::for_tests::{PIECE, Running, Sample, options};
use super::*;
use crate::discovery::dht::id::Family;
use crate::metainfo::build::TorrentBuilder;
use crate::metainfo::info::Info;
use crate::peer::wire::{Decoder, Handshake, Limits, Message, Reserved};

/// A search that finds nobody is repeated within seconds, then less often.
const LONG: Duration = Duration::from_secs(100);

/// A client that has the DHT only, entered by this node or, without one, by what it has kept.
async fn client(cache: &Path, ip: IpAddr, entry: Option<SocketAddr>) -> Running {
    let dht_bootstrap = entry.map(|entry| vec![entry.to_string()]);
    let listen_addr = Some(ip);
    Running::start(cache, Options { listen_addr, use_dht: true, dht_bootstrap, ..options() }).await
}

fn node_of(running: &Running, ip: IpAddr) -> SocketAddr {
    let family = if ip.is_ipv4() { Family::V4 } else { Family::V6 };
    running.client.env.dht.as_ref().unwrap().local_addr(family).unwrap()
}

/// Adds a magnet that names nobody, and waits until its metadata has come.
async fn resolve_by_hash(running: &Running, sample: &Sample) {
    let torrent = running.client.add(sample.magnet(Vec::new())).await.unwrap();
    let wait = async {
        while torrent.live().is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let status = || format!("{:?}", running.client.env.dht.as_ref().unwrap().status());
    tokio::time::timeout(LONG, wait).await.unwrap_or_else(|_| panic!("nobody found: {}", status()));
}

/// Somebody who has two torrents is found by a client that knows one node, and, when that client is started anew, without
/// knowing one.
async fn found_and_found_again(ip: IpAddr) {
    let [root, seed, leech] = [1, 2, 3].map(|_| tempfile::tempdir().unwrap());
    let samples = ["one", "two"].map(|name| Sample::new(name, &[]));
    let root = client(root.path(), ip, None).await;
    let entry = node_of(&root, ip);
    assert_eq!(entry, SocketAddr::new(ip, root.client.port()), "it has the port of TCP");
    let cache = CacheDir::open(seed.path()).unwrap();
    drop(cache);
    samples.iter().for_each(|sample| sample.put(seed.path()));
    let seed = client(seed.path(), ip, Some(entry)).await;
    for sample in &samples {
        seed.client.add(sample.loaded()).await.unwrap();
    }
    let before = client(leech.path(), ip, Some(entry)).await;
    resolve_by_hash(&before, &samples[0]).await;
    before.stop().await;
    let after = client(leech.path(), ip, None).await;
    resolve_by_hash(&after, &samples[1]).await;
    for running in [after, seed, root] {
        running.stop().await;
    }
}

#[tokio::test]
async fn a_magnet_is_found_through_our_own_network_and_after_a_restart_without_an_entry() {
    found_and_found_again(Ipv4Addr::LOCALHOST.into()).await;
}

#[tokio::test]
async fn a_magnet_is_found_over_ipv6_alone() {
    let ip = IpAddr::V6(Ipv6Addr::LOCALHOST);
    if Sockets::default().udp(SocketAddr::new(ip, 0)).is_err() {
        eprintln!("skipped: no IPv6 on loopback");
        return;
    }
    found_and_found_again(ip).await;
}

/// The bytes of a packet's transaction id.
fn tid(packet: &[u8]) -> &[u8] {
    let at = packet.windows(5).rposition(|part| part == b"1:t4:").expect("an id of four bytes") + 5;
    &packet[at..at + 4]
}

fn names(packet: &[u8], hash: [u8; 20]) -> bool {
    packet.windows(20).any(|part| part == hash)
}

/// What the client says of itself to who connects and asks for a torrent, and the port it names within what follows.
async fn greeted(port: u16, info_hash: [u8; 20]) -> (Reserved, Option<u16>) {
    let to = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = Sockets::default().connect(to).await.unwrap();
    let reserved = Reserved::new().with_fast().with_dht();
    let ours = Handshake { reserved, info_hash, peer_id: [7; 20] };
    stream.write_all(&ours.encode()).await.unwrap();
    let mut theirs = [0; Handshake::LEN];
    stream.read_exact(&mut theirs).await.unwrap();
    let theirs = Handshake::decode(&theirs).unwrap();
    // It lets us in, or says that it won't: what it has to say first is said by then.
    let (decoder, mut read, mut named) = (Decoder::new(Limits { max_frame: 1 << 16 }), BytesMut::new(), None);
    Message::Interested.encode(&mut read);
    stream.write_all(&read.split()).await.unwrap();
    loop {
        match decoder.decode(&mut read).unwrap() {
            Some(Message::Port(port)) => named = Some(port),
            Some(Message::Unchoke) => return (theirs.reserved, named),
            Some(_) => {}
            None => assert!(stream.read_buf(&mut read).await.unwrap() > 0, "it closed"),
        }
    }
}

#[tokio::test]
async fn a_private_torrent_is_never_spoken_of() {
    let dir = tempfile::tempdir().unwrap();
    drop(CacheDir::open(dir.path()).unwrap());
    let bytes = vec![7; 4 * PIECE as usize];
    let mut builder = TorrentBuilder::new("secret", PIECE);
    builder.single_file(bytes.len() as u64).data(&bytes).private(true);
    let info = Arc::new(Info::parse(&builder.info().unwrap(), None).unwrap());
    let [private, public] = [Sample { info, bytes }, Sample::new("open", &[])];
    assert!(private.info.private && !public.info.private);
    // The only node there is.
    let node = Sockets::default().udp("127.0.0.1:0".parse().unwrap()).unwrap();
    let running = client(dir.path(), Ipv4Addr::LOCALHOST.into(), Some(node.local_addr().unwrap())).await;
    for sample in [&private, &public] {
        sample.put(dir.path());
        let named = vec![("127.0.0.1".to_owned(), 9)];
        running.client.add(Loaded { nodes: named, ..sample.loaded() }).await.unwrap();
    }
    let [secret, open] = [&private, &public].map(|sample| sample.info.info_hash.wire().0);
    let mut packet = [0; 2048];
    let announced = async {
        loop {
            let (len, from) = node.recv_from(&mut packet).await.unwrap();
            let packet = &packet[..len];
            assert!(!names(packet, secret), "{}", packet.escape_ascii());
            if packet.windows(13).any(|part| part == b"announce_peer") {
                assert!(names(packet, open));
                break;
            }
            let answer =
                [&b"d1:rd2:id20:abcdefghij01234567895:nodes0:5:token2:xxe1:t4:"[..], tid(packet), b"1:y1:re"];
            node.send_to(&answer.concat(), from).await.unwrap();
        }
    };
    tokio::time::timeout(LONG, announced).await.expect("the other is announced");
    let port = running.client.port();
    for (hash, spoken_of) in [(open, true), (secret, false)] {
        let greeted = tokio::time::timeout(LONG, greeted(port, hash)).await.expect("it answers");
        assert_eq!((greeted.0.supports_dht(), greeted.1), (spoken_of, spoken_of.then_some(port)));
    }
    running.stop().await;
}
