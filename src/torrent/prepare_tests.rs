//! Tests of opening a torrent's storage: what is believed of its record, whatever the settings, the record and the data
//! are (rows C2, C3, O8, S1), what becomes of adopted data, and what is tidied up.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fmt::Write as _;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};

use super::*;
use crate::hash;
use crate::metainfo::build::TorrentBuilder;
use crate::metainfo::geometry::BLOCK_LEN;
use crate::net::transport::Kind;
use crate::peer::PeerKey;
use crate::peer::event::{Connected, Item};
use crate::peer::mse::{Cover, Policy};
use crate::storage::cache::CacheDir;
use crate::storage::pool::Scratch;
use crate::storage::quota::Quota;
use crate::storage::verify::{Checked, check_piece};
use crate::torrent::background::Prefetch;
use crate::torrent::effects::{Effect, Event, Looked, Verdict};
use crate::torrent::inbox::Demand;
use crate::torrent::memory::Memory;
use crate::torrent::swarm::{Settings, Swarm};

const PIECE: u32 = 2 * BLOCK_LEN;
const PIECES: u32 = 4;

fn settings(check_all: bool) -> Settings {
    Settings {
        info_hash: [1; 20],
        peer_id: *b"-TF0001-ourselves---",
        listen_port: None.into(),
        max_peers: 80,
        connections: Default::default(),
        punch: true,
        encryption: Policy::Off,
        read_timeout: None,
        filter: Arc::default(),
        upload: true,
        goals: crate::torrent::goal::Goals::default(),
        pex: true,
        check_all,
        prefetch: Prefetch::None,
        memory: Memory::default(),
        quota: Arc::new(Quota::new(None)),
        check_invariants: true,
    }
}

/// The bytes of a piece of the torrents here, the last piece a little short.
fn bytes(piece: u32, pieces: u32) -> Vec<u8> {
    vec![piece as u8 + 1; PIECE as usize - if piece + 1 == pieces { 1000 } else { 0 }]
}

fn torrent(pieces: u32) -> Arc<Info> {
    let mut builder = TorrentBuilder::new("t", PIECE);
    builder.single_file(u64::from(pieces * PIECE) - 1000);
    builder.piece_hashes((0..pieces).map(|piece| hash::sha1(&bytes(piece, pieces))));
    Arc::new(Info::parse(&builder.info().unwrap(), None).unwrap())
}

fn means(workers: &Arc<Workers>) -> Means {
    Means {
        workers: workers.clone(),
        inbox: Arc::default(),
        recent: Recent::new(0),
        clock: ReadClock::default(),
    }
}

fn how(trust: bool) -> Opening {
    Opening { trust, kind: StorageKind::File, capacity: u64::MAX }
}

/// A torrent's folder.
struct Place {
    _cache: tempfile::TempDir,
    cache: CacheDir,
    dir: PathBuf,
    info: Arc<Info>,
    workers: Arc<Workers>,
}

impl Place {
    fn new(info: Arc<Info>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cache = CacheDir::open(folder.path()).unwrap();
        let dir = cache.torrent_dir(&"ab".repeat(20)).unwrap();
        Self { _cache: folder, cache, dir, info, workers: Workers::start(1).unwrap() }
    }

    fn home(&self) -> Home {
        Home::new(self.dir.clone(), "ab".repeat(20), self.cache.spare().clone())
    }

    fn record(&self) -> ResumeData {
        ResumeData::new(&self.home().key, &self.info)
    }

    fn save(&self, data: &ResumeData) {
        resume::save(&self.dir, data).unwrap();
    }

    fn load(&self) -> ResumeData {
        resume::load(&self.dir).unwrap().unwrap()
    }

    fn open(&self, trust: bool) -> (Home, Prepared) {
        let home = self.home();
        let prepared = prepare(&home, how(trust), self.info.clone(), means(&self.workers)).unwrap();
        assert_eq!(prepared.recorded, prepared.shared.table.bitfield());
        (home, prepared)
    }

    /// Writes these pieces, right or with wrong bytes, as an earlier run did.
    fn write(&self, pieces: impl IntoIterator<Item = u32>, good: bool) {
        let files = adopt::stored_files(&self.info);
        let geometry = Arc::new(self.info.geometry.clone());
        let store = FileStore::open(&self.dir, geometry.clone(), &files).unwrap();
        for piece in pieces {
            let mut bytes = bytes(piece, geometry.pieces());
            bytes[77] ^= u8::from(!good);
            store.write_at(geometry.piece_offset(PieceIndex(piece)), &[IoSlice::new(&bytes)]).unwrap();
        }
        store.close();
    }

    /// Its only file, under whichever name.
    fn file(&self) -> PathBuf {
        let mut files = std::fs::read_dir(self.dir.join("data")).unwrap();
        files.next().expect("a file").unwrap().path()
    }
}

fn states(prepared: &Prepared) -> String {
    let state = |piece| match prepared.shared.table.state(PieceIndex(piece)) {
        PieceState::Complete => 'C',
        PieceState::Unknown => 'u',
        PieceState::Missing => '-',
        PieceState::Requested | PieceState::Verifying => '?',
    };
    (0..prepared.shared.table.len()).map(state).collect()
}

/// A torrent that is open, a seeder of it, and workers that do what they are told at once.
struct World<'a> {
    swarm: Swarm,
    prepared: &'a Prepared,
    now: Instant,
    effects: Vec<Effect>,
    /// Pieces that came from the seeder.
    fetched: u32,
}

impl<'a> World<'a> {
    fn new(prepared: &'a Prepared, check_all: bool) -> Self {
        let swarm = Swarm::new(settings(check_all));
        let mut world = Self { swarm, prepared, now: Instant::now(), effects: Vec::new(), fetched: 0 };
        let (info, table) = (prepared.shared.info.clone(), prepared.shared.table.clone());
        world.apply(Event::Metadata { info, table });
        let addr = SocketAddr::from(([127, 0, 0, 1], 10_000));
        let peer = Connected {
            addr,
            incoming: false,
            peer_id: [3; 20],
            fast: true,
            extensions: false,
            cover: Cover::Plain,
            kind: Kind::Tcp,
        };
        world.apply(Event::Connected { key: PeerKey(1), peer });
        world.apply(Event::Said { key: PeerKey(1), items: vec![Item::HaveAll, Item::Choked(false)] });
        world.apply(Event::Demands(vec![Demand::Open { stream: 1, file: FileIndex(0) }]));
        world
    }

    fn apply(&mut self, event: Event) {
        self.effects.extend(self.swarm.apply(event, self.now));
    }

    /// Wants a piece, as a reader does that doesn't find it complete.
    fn want(&mut self, piece: PieceIndex) {
        let want = Demand::Want {
            waiter: u64::from(piece.0),
            stream: 1,
            file: FileIndex(0),
            offset: 0,
            all: 0..0,
            pieces: vec![piece],
            since: self.now,
        };
        self.apply(Event::Demands(vec![want]));
    }

    /// Carries everything out, for a while.
    fn settle(&mut self) {
        for _ in 0..30 {
            while !self.effects.is_empty() {
                for effect in std::mem::take(&mut self.effects) {
                    self.carry_out(effect);
                }
            }
            self.now += Duration::from_secs(1);
            self.apply(Event::Tick);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        let shared = &self.prepared.shared;
        let geometry = &shared.info.geometry;
        match effect {
            Effect::Request(assignments) => {
                for a in assignments {
                    let bytes = bytes(a.block.piece.0, geometry.pieces());
                    let begin = (a.block.block.0 * BLOCK_LEN) as usize;
                    let block = bytes[begin..begin + a.len as usize].to_vec();
                    assert!(a.buffer.put(a.block.block, block.into(), a.peer));
                    let item = Item::Block { block: a.block, buffer: a.buffer };
                    self.apply(Event::Said { key: a.peer, items: vec![item] });
                }
            }
            Effect::Verify { buffer, .. } => {
                let piece = buffer.piece();
                let blocks = buffer.blocks().unwrap();
                assert!(shared.info.hashes.piece(piece).unwrap().verify(&blocks));
                let parts: Vec<_> = blocks.iter().map(|b| IoSlice::new(b)).collect();
                shared.store.write_at(geometry.piece_offset(piece), &parts).unwrap();
                self.fetched += 1;
                self.apply(Event::Verified { piece, verdict: Verdict::Good, digests: Vec::new() });
            }
            Effect::Check(piece) | Effect::Sweep { piece, .. } => {
                let recorded = matches!(effect, Effect::Sweep { recorded: true, .. });
                let hash = shared.info.hashes.piece(piece).unwrap();
                let right = |bytes: &[u8]| hash.verify(&[bytes]);
                let checked = check_piece(&*shared.store, geometry, piece, &mut Scratch::default(), right);
                let good = checked.unwrap() == Checked::Good;
                let looked = if recorded { Looked::Recorded(good) } else { Looked::Unsure(good) };
                self.apply(Event::Checked { piece, looked });
            }
            Effect::Discard(pieces) => {
                for piece in pieces {
                    let start = geometry.piece_offset(piece);
                    let range = start..start + u64::from(geometry.piece_len(piece));
                    shared.store.discard(range.clone(), range).unwrap();
                }
            }
            _ => {}
        }
    }

    /// Whether a piece has the right bytes, as a reader sees them.
    fn is_right(&self, piece: u32) -> bool {
        let shared = &self.prepared.shared;
        let expected = bytes(piece, shared.info.geometry.pieces());
        let mut read = vec![0; expected.len()];
        let offset = shared.info.geometry.piece_offset(PieceIndex(piece));
        shared.store.read_at(offset, &mut read).is_ok() && read == expected
    }
}

#[test]
fn c2_no_cell_of_the_matrix_is_dead_and_no_byte_wrong_where_the_settings_promise_it() {
    let mut table = String::from("check trust recorded   data   at first  fetched  at last  right\n");
    let mut failed = false;
    let info = torrent(PIECES);
    for check in [false, true] {
        for trust in [false, true] {
            for recorded in ["unknown", "complete", "incomplete"] {
                for data in ["good", "bad", "absent"] {
                    let place = Place::new(info.clone());
                    if data != "absent" {
                        place.write(0..PIECES, data == "good");
                    }
                    let bits = match recorded {
                        "unknown" => None,
                        "complete" => Some(0xf0),
                        _ => Some(0xa0),
                    };
                    if let Some(bits) = bits {
                        place.save(&ResumeData { complete: vec![bits], ..place.record() });
                    }
                    let (_, prepared) = place.open(trust);
                    let first = states(&prepared);
                    let mut world = World::new(&prepared, check);
                    // Somebody reads at once, and once more when the full check is through.
                    for _ in 0..2 {
                        let all = info.geometry.all_pieces();
                        let wanted: Vec<_> = all.filter(|p| !prepared.shared.table.is_complete(*p)).collect();
                        wanted.into_iter().for_each(|piece| world.want(piece));
                        world.settle();
                    }
                    let last = states(&prepared);
                    let right: String =
                        (0..PIECES).map(|p| if world.is_right(p) { 'r' } else { 'w' }).collect();
                    // Bad data of the right length that is believed as recorded and not looked at: as was asked for.
                    let believed = |p: u32| trust && bits.is_some_and(|bits| bits & (0x80 >> p) != 0);
                    let promised: String = (0..PIECES)
                        .map(|p| if believed(p) && data == "bad" && !check { 'w' } else { 'r' })
                        .collect();
                    let fetched = match data {
                        "good" if trust && recorded == "incomplete" => 2,
                        "good" => 0,
                        _ => promised.matches('r').count() as u32,
                    };
                    let good = last == "CCCC" && right == promised && world.fetched == fetched;
                    failed |= !good;
                    let mark = if good { "" } else { "  <- dead, or wrong" };
                    writeln!(
                        table,
                        "{check:<5} {trust:<5} {recorded:<10} {data:<6} {first:<9} {:<8} {last:<8} {right}{mark}",
                        world.fetched
                    )
                    .unwrap();
                }
            }
        }
    }
    assert!(!failed, "\n{table}");
}

/// A store that can't be read: whatever is settled, it is without reading.
struct Unreadable(Vec<FileState>);

impl Store for Unreadable {
    fn write_at(&self, _: u64, _: &[IoSlice<'_>]) -> Result<(), StorageError> {
        panic!("written");
    }
    fn read_at(&self, _: u64, _: &mut [u8]) -> Result<(), StorageError> {
        panic!("read");
    }
    fn try_read(&self, _: u64, _: &mut [u8]) -> Result<bool, StorageError> {
        panic!("read");
    }
    fn sync(&self) -> Result<(), StorageError> {
        panic!("synced");
    }
    fn discard(&self, _: std::ops::Range<u64>, _: std::ops::Range<u64>) -> Result<(), StorageError> {
        Ok(())
    }
    fn files(&self) -> Result<Vec<FileState>, StorageError> {
        Ok(self.0.clone())
    }
    fn close(&self) {}
}

#[test]
fn c3_a_hundred_thousand_pieces_are_ready_without_a_hash() {
    for (pieces, files) in [(100_000_u32, 1), (100_000, 20_000), (1_000_000, 10_000)] {
        let size = u64::from(pieces) * 16384 / files;
        let geometry = Geometry::contiguous(16384, &vec![size; files as usize]);
        let state = FileState { len: Some(size), modified: 7, ..FileState::default() };
        let store = Unreadable(vec![state; files as usize]);
        let mut record = ResumeData {
            pieces: geometry.pieces(),
            complete: vec![0xff; geometry.pieces().div_ceil(8) as usize],
            ..ResumeData::default()
        };
        record.complete = resume::with_data(&geometry, &store.0);
        let began = Instant::now();
        for trust in [true, false] {
            let sides = sides(&store, None, Some(&record)).unwrap();
            let believed = settle(Some(&record), trust, &geometry, &sides);
            let count = |bits: &[u8]| bits.iter().map(|b| b.count_ones()).sum::<u32>();
            let complete = if trust { geometry.pieces() } else { 0 };
            assert_eq!(
                (count(&believed.complete), count(&believed.unknown)),
                (complete, geometry.pieces() - complete)
            );
            tidy(&store, &geometry, &store.0, &record, true, "t");
        }
        // Row C3 says 2 s, of the whole program: far more than this takes, unless each file looks at each piece.
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    }
}

#[test]
fn o8_what_was_recorded_is_complete_again_and_its_file_has_its_name() {
    let place = Place::new(torrent(PIECES));
    place.write(0..PIECES, true);
    assert!(place.file().extension().is_some_and(|e| e == "part"), "nobody finished it");
    place.save(&ResumeData { complete: vec![0xf0], clean: true, ..place.record() });
    let (_, prepared) = place.open(true);
    assert_eq!((states(&prepared).as_str(), prepared.clean), ("CCCC", true));
    assert_eq!(place.file().file_name().unwrap(), "t");
    assert_eq!(place.file().metadata().unwrap().permissions().mode() & 0o222, 0);
    assert!(place.load().clean, "the record stands");
}

#[test]
fn what_nobody_looked_at_survives_a_run_that_trusts_nothing() {
    let place = Place::new(torrent(PIECES));
    place.write([0, 1, 2, 3], true);
    place.save(&ResumeData { complete: vec![0xe0], clean: true, ..place.record() });
    let (home, prepared) = place.open(false);
    assert_eq!(states(&prepared), "uuuu");
    // The record on the disk says so at once: what it called complete may be written over from now on.
    let record = place.load();
    assert_eq!((record.complete, record.unknown, record.clean), (vec![0], vec![0xf0], false));
    // One is looked at, and good; one isn't. Another is being looked at.
    prepared.shared.table.set(PieceIndex(0), PieceState::Complete);
    prepared.shared.table.set(PieceIndex(1), PieceState::Missing);
    prepared.shared.table.set(PieceIndex(2), PieceState::Verifying);
    let record = Record { complete: vec![0x80], clean: true, new: Vec::new() };
    save(&prepared.shared, &home, &record).unwrap();
    let record = place.load();
    assert_eq!((&record.complete, &record.unknown, record.clean), (&vec![0x80], &vec![0x30], true));
    assert_eq!((record.name.as_str(), record.size), ("t", place.info.geometry.end()));
    assert!(record.last_used > 1_600_000_000 && record.files.len() == 1 && record.files[0].modified > 0);
    prepared.shared.store.close();
    assert_eq!(states(&place.open(true).1), "C-uu");
}

#[test]
fn s1_a_file_changed_after_a_clean_end_is_looked_at_again() {
    let place = Place::new(torrent(PIECES));
    place.write(0..PIECES, true);
    place.save(&ResumeData { complete: vec![0xe0], ..place.record() });
    let (home, prepared) = place.open(true);
    assert_eq!(states(&prepared), "CCC-");
    let record = Record { complete: vec![0xe0], clean: true, new: Vec::new() };
    save(&prepared.shared, &home, &record).unwrap();
    prepared.shared.store.close();
    assert_eq!(states(&place.open(true).1), "CCC-", "nobody was at it");
    let file = std::fs::File::options().write(true).open(place.file()).unwrap();
    let time = SystemTime::now() + Duration::from_secs(5);
    file.set_modified(time).unwrap();
    assert_eq!(states(&place.open(true).1), "uuu-");
    let record = place.load();
    assert_eq!((record.complete, record.unknown, record.clean), (vec![0], vec![0xe0], false));
    // From then on no time is compared, and what is unknown stays so until it is looked at.
    file.set_modified(time + Duration::from_secs(5)).unwrap();
    assert_eq!(states(&place.open(true).1), "uuu-");
    file.set_len(u64::from(PIECE) + 1).unwrap();
    assert_eq!(states(&place.open(true).1), "u---");
    std::fs::remove_file(place.file()).unwrap();
    assert_eq!(states(&place.open(true).1), "----");
}

#[test]
fn a_record_of_something_else_is_not_used() {
    let place = Place::new(torrent(PIECES));
    place.write(0..PIECES, true);
    let good = ResumeData { complete: vec![0xf0], ..place.record() };
    let rows = [
        ResumeData { info_hash: "cd".repeat(20), ..good.clone() },
        ResumeData { pieces: 5, ..good.clone() },
        ResumeData { piece_length: PIECE * 2, ..good.clone() },
        ResumeData { size: good.size - 1, ..good.clone() },
    ];
    for row in rows {
        place.save(&row);
        assert_eq!(states(&place.open(true).1), "uuuu", "{row:?}");
    }
    place.save(&good);
    std::fs::write(place.dir.join("resume"), b"damaged").unwrap();
    assert_eq!(states(&place.open(true).1), "uuuu");
    assert!(place.dir.join("resume.bad").exists());
}

#[test]
fn after_an_unclean_end_what_missing_pieces_left_is_given_back() {
    let pieces = 32;
    let piece = u64::from(PIECE);
    for (clean, left) in [(true, 32 * piece), (false, 12 * piece)] {
        let place = Place::new(torrent(pieces));
        place.write(0..pieces, true);
        let allocated = || place.file().metadata().unwrap().blocks() * 512;
        if allocated() < 30 * piece {
            // A file system that says nothing of it, or packs it.
            return;
        }
        // The first eight are complete, and four somewhere else unknown.
        let bits = |bits: u32| bits.to_be_bytes().to_vec();
        let (complete, unknown) = (bits(0xff00_0000), bits(0x0000_f000));
        place.save(&ResumeData { complete, unknown, clean, ..place.record() });
        let (_, prepared) = place.open(true);
        assert_eq!(states(&prepared), format!("CCCCCCCC{}uuuu{}", "-".repeat(8), "-".repeat(12)));
        assert!(allocated().abs_diff(left) <= piece, "{clean}: {} instead of {left}", allocated());
        let world = World::new(&prepared, false);
        assert!((0..8).chain(16..20).all(|p| world.is_right(p)));
    }
}

#[test]
fn adopted_data_is_used_where_it_lies_and_missed_when_it_is_gone() {
    for read_only in [true, false] {
        let place = Place::new(torrent(PIECES));
        let adopted = tempfile::tempdir().unwrap();
        let theirs = adopted.path().join("t");
        let data: Vec<u8> = (0..PIECES).flat_map(|p| bytes(p, PIECES)).collect();
        std::fs::write(&theirs, &data).unwrap();
        // All but the third are right below, or so it was found.
        let below = if read_only { vec![0xd0] } else { Vec::new() };
        let path = adopt::locate(adopted.path(), &place.info).unwrap().unwrap();
        let with = Adopted { path, read_only, below: below.clone(), files: Vec::new() };
        place.save(&ResumeData { complete: vec![0xd0], adopted: Some(with), ..place.record() });
        let (home, prepared) = place.open(true);
        assert_eq!(states(&prepared), "CC-C");
        let mut world = World::new(&prepared, false);
        world.want(PieceIndex(2));
        world.settle();
        assert_eq!((states(&prepared).as_str(), world.fetched), ("CCCC", 1));
        assert!((0..PIECES).all(|p| world.is_right(p)));
        assert_eq!(place.dir.join("data/t.part").exists(), read_only);
        assert_eq!(std::fs::read(&theirs).unwrap(), data);
        let record = Record { complete: vec![0xf0], clean: true, new: Vec::new() };
        save(&prepared.shared, &home, &record).unwrap();
        prepared.shared.store.close();
        assert_eq!(place.load().adopted.unwrap().below, below);
        let (_, prepared) = place.open(true);
        assert_eq!((states(&prepared).as_str(), prepared.clean), ("CCCC", true), "{read_only}");
        assert!((0..PIECES).all(|p| World::new(&prepared, false).is_right(p)));
        prepared.shared.store.close();
        // After a kill, too, nobody takes what is put in its place for what was there.
        if !read_only {
            let clean = place.load();
            place.save(&ResumeData { complete: vec![0xd0], clean: false, ..clean.clone() });
            let (_, prepared) = place.open(true);
            assert_eq!(states(&prepared), "CC-C");
            let other = theirs.with_extension("other");
            std::fs::write(&other, vec![0xee; data.len()]).unwrap();
            std::fs::rename(&other, &theirs).unwrap();
            let read = prepared.shared.store.read_at(0, &mut [0; 10]);
            assert!(matches!(read, Err(StorageError::Changed { .. })), "{read:?}");
            prepared.shared.store.close();
            place.save(&clean);
        }
        // Somebody is at it.
        let file = std::fs::File::options().write(true).open(&theirs).unwrap();
        file.set_modified(SystemTime::now() + Duration::from_secs(5)).unwrap();
        let (_, prepared) = place.open(true);
        assert_eq!(states(&prepared), if read_only { "uuCu" } else { "uuuu" });
        prepared.shared.store.close();
        // It is gone: what lies above of it is ours.
        let gone = adopted.path().to_owned();
        drop(adopted);
        assert!(!gone.exists());
        let (_, prepared) = place.open(true);
        assert_eq!(states(&prepared), if read_only { "--C-" } else { "----" });
        assert_eq!(place.load().adopted, None);
        let mut world = World::new(&prepared, false);
        (0..PIECES).for_each(|p| world.want(PieceIndex(p)));
        world.settle();
        assert!((0..PIECES).all(|p| world.is_right(p)) && states(&prepared) == "CCCC");
    }
}

#[test]
fn a_store_in_memory_begins_with_nothing_and_leaves_the_record_alone() {
    let place = Place::new(torrent(PIECES));
    place.write(0..PIECES, true);
    let data = ResumeData { complete: vec![0xf0], clean: true, ..place.record() };
    place.save(&data);
    let how = Opening { trust: true, kind: StorageKind::Memory, capacity: 1 << 20 };
    let prepared = prepare(&place.home(), how, place.info.clone(), means(&place.workers)).unwrap();
    assert_eq!(states(&prepared), "----");
    assert!(!prepared.shared.store.is_durable() && prepared.recorded == [0]);
    assert_eq!(place.load(), data);
    let how = Opening { kind: StorageKind::Mmap, ..how };
    let prepared = prepare(&place.home(), how, place.info.clone(), means(&place.workers)).unwrap();
    assert_eq!(states(&prepared), "CCCC");
    assert!((0..PIECES).all(|p| World::new(&prepared, false).is_right(p)));
}
