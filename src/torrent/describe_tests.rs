//! Tests of what is told of a torrent.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;

use super::*;
use crate::discovery::FoundPeers;
use crate::metainfo::build::TorrentBuilder;
use crate::metainfo::geometry::BLOCK_LEN;
use crate::metainfo::info::Info;
use crate::net::transport::Kind;
use crate::peer::event::{Connected, Item};
use crate::peer::mse::{Cover, Policy};
use crate::storage::quota::Quota;
use crate::torrent::background::Prefetch;
use crate::torrent::effects::{Effect, Event};
use crate::torrent::inbox::Demand;
use crate::torrent::memory::Memory;
use crate::torrent::swarm::Settings;
use crate::torrent::table::PieceTable;

const PIECES: u32 = 8;
const BLOCKS: u32 = 4;

fn swarm(now: Instant) -> Swarm {
    let mut swarm = Swarm::new(Settings {
        info_hash: [1; 20],
        peer_id: [2; 20],
        listen_port: None.into(),
        max_peers: 80,
        connections: Default::default(),
        punch: true,
        encryption: Policy::Off,
        read_timeout: None,
        filter: Arc::default(),
        upload: true,
        goals: crate::torrent::goal::Goals::default(),
        pex: false,
        check_all: false,
        prefetch: Prefetch::None,
        memory: Memory::default(),
        quota: Arc::new(Quota::new(None)),
        check_invariants: true,
    });
    let mut builder = TorrentBuilder::new("t", BLOCKS * BLOCK_LEN);
    let size = (PIECES * BLOCKS * BLOCK_LEN) as usize;
    builder.single_file(size as u64).data(&vec![7; size]);
    let info = Arc::new(Info::parse(&builder.info().unwrap(), None).unwrap());
    let table = Arc::new(PieceTable::new(PIECES, PieceState::Missing));
    swarm.apply(Event::Metadata { info, table }, now);
    swarm
}

fn addr(n: u64) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 10_000 + n as u16))
}

fn connect(swarm: &mut Swarm, n: u64, items: Vec<Item>, now: Instant) -> Vec<Effect> {
    let mut peer_id = [b'x'; 20];
    peer_id[..8].copy_from_slice(&n.to_be_bytes());
    let peer = Connected {
        addr: addr(n),
        incoming: false,
        peer_id,
        fast: true,
        extensions: false,
        cover: Cover::Plain,
        kind: Kind::Tcp,
    };
    swarm.apply(Event::Connected { key: PeerKey(n), peer }, now);
    swarm.apply(Event::Said { key: PeerKey(n), items }, now)
}

fn want(swarm: &mut Swarm, waiter: u64, pieces: Range<u32>, now: Instant) -> Vec<Effect> {
    let demand = Demand::Want {
        waiter,
        stream: 1,
        file: FileIndex(0),
        offset: u64::from(pieces.start * BLOCKS * BLOCK_LEN),
        all: pieces.clone(),
        pieces: pieces.map(PieceIndex).collect(),
        since: now,
    };
    swarm.apply(Event::Demands(vec![demand]), now)
}

use std::ops::Range;

#[test]
fn l5_each_piece_that_is_waited_for_tells_which_peers_have_it() {
    let now = Instant::now();
    let mut swarm = swarm(now);
    connect(&mut swarm, 1, vec![Item::HaveAll, Item::Choked(false)], now);
    connect(&mut swarm, 2, vec![Item::HaveAll], now);
    connect(&mut swarm, 3, vec![Item::Have(PieceIndex(7))], now);
    let fx = want(&mut swarm, 5, 2..3, now);
    let (buffer, peer) = fx
        .into_iter()
        .find_map(|fx| match fx {
            Effect::Request(asked) => {
                asked.into_iter().find(|a| a.block.block.0 == 0).map(|a| (a.buffer, a.peer))
            }
            _ => None,
        })
        .unwrap();
    assert_eq!(peer, PeerKey(1));
    // The first block comes, the others don't.
    let block = crate::metainfo::geometry::BlockRef {
        piece: PieceIndex(2),
        block: crate::metainfo::geometry::BlockIndex(0),
    };
    let later = now + Duration::from_secs(1);
    swarm.apply(Event::Said { key: peer, items: vec![Item::Block { block, buffer }] }, later);
    let view = swarm.describe(now + Duration::from_secs(3));
    let wait = WaitView {
        file: FileIndex(0),
        offset: u64::from(2 * BLOCKS * BLOCK_LEN),
        pieces: vec![PieceIndex(2)],
        waited: Duration::from_secs(3),
    };
    assert_eq!(view.waits, [wait]);
    let [piece] = &view.pieces[..] else { panic!("{:?}", view.pieces) };
    assert_eq!((piece.piece, piece.last_block), (PieceIndex(2), Some(Duration::from_secs(2))));
    let parts = piece.parts.as_ref().unwrap();
    assert_eq!((parts.blocks, parts.here, parts.requested), (BLOCKS as usize, 1, BLOCKS as usize - 1));
    let holder = HolderView {
        who: Holder::Peer(addr(1)),
        has: true,
        serves: true,
        chokes_us: false,
        interesting: true,
        snubbed: false,
        asked: BLOCKS as usize - 1,
        in_flight: BLOCKS as usize - 1,
    };
    let choking = HolderView {
        who: Holder::Peer(addr(2)),
        serves: false,
        chokes_us: true,
        asked: 0,
        in_flight: 0,
        ..holder.clone()
    };
    assert_eq!(piece.holders, [holder, choking], "and not the third, which hasn't got it");
    assert_eq!(view.peers.iter().map(|p| p.has).collect::<Vec<_>>(), [None, None, Some(1)]);
    assert_eq!(view.states, Some([0, PIECES - 1, 1, 0, 0]));
}

#[test]
fn connected_peers_are_told_with_where_they_came_from() {
    let now = Instant::now();
    let mut swarm = swarm(now);
    for (n, source) in [(1, PeerSource::Pex), (2, PeerSource::CommandLine)] {
        swarm.apply(Event::Found(FoundPeers { source, addrs: vec![addr(n)] }), now);
        connect(&mut swarm, n, Vec::new(), now);
    }
    let incoming = Connected {
        addr: addr(3),
        incoming: true,
        peer_id: [3; 20],
        fast: true,
        extensions: false,
        cover: Cover::Full,
        kind: Kind::Utp,
    };
    swarm.apply(Event::Connected { key: PeerKey(3), peer: incoming }, now);
    let told = swarm.connected_peers().map(|(key, peer)| {
        let source = peer.source.map_or("nobody knows", PeerSource::as_str);
        (key.0, peer.addr, source, peer.kind.as_str(), peer.cover.as_str())
    });
    assert_eq!(
        told.collect::<Vec<_>>(),
        [
            (1, addr(1), "pex", "tcp", "plain"),
            (2, addr(2), "named", "tcp", "plain"),
            (3, addr(3), "incoming", "utp", "rc4"),
        ]
    );
}

#[test]
fn webseeds_are_told_of_as_sources() {
    let now = Instant::now();
    let mut swarm = swarm(now);
    swarm.apply(Event::Webseed { key: PeerKey(9), url: "http://seed/".into() }, now);
    want(&mut swarm, 5, 2..3, now);
    let view = swarm.describe(now);
    let [piece] = &view.pieces[..] else { panic!("{:?}", view.pieces) };
    let [holder] = &piece.holders[..] else { panic!("{:?}", piece.holders) };
    assert_eq!((holder.who.to_string(), holder.serves), ("webseed http://seed/".to_owned(), true));
    assert_eq!((holder.asked, holder.in_flight), (BLOCKS as usize, BLOCKS as usize));
    swarm.apply(Event::Said { key: PeerKey(9), items: vec![Item::Choked(true)] }, now);
    swarm.apply(Event::Refuses { key: PeerKey(9), files: vec![FileIndex(0)] }, now);
    let view = swarm.describe(now);
    assert!(view.peers.is_empty() && view.pieces[0].holders.is_empty());
    let [seed] = &view.webseeds[..] else { panic!("{:?}", view.webseeds) };
    assert_eq!((seed.url.as_str(), seed.has, seed.waits, seed.in_flight), ("http://seed/", Some(0), true, 0));
}

#[test]
fn what_is_listed_is_bounded() {
    let now = Instant::now();
    let mut swarm = swarm(now);
    for waiter in 0..1_000 {
        want(&mut swarm, waiter, 0..PIECES, now);
    }
    let view = swarm.describe(now);
    assert_eq!((view.waiting, view.waits.len(), view.pieces.len()), (1_000, WAITS_MAX, PIECES as usize));
    assert!(view.pieces.iter().all(|piece| piece.holders.is_empty() && piece.parts.is_none()));
}
