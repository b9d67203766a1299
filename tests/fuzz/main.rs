//! Every reader of what others send, over its corpus and over what chance makes of it.
//!
//! Each target of [`targets`] is run over the files of its folder in `corpus`, and over inputs that are made of those by
//! flipping bits, cutting, splicing two together, and putting large and small numbers where there are some. A failure
//! prints the input. `scripts/fuzz` runs the same targets under libFuzzer, from the same corpora.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod seeds;
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use targets::{TARGETS, Target};

/// Inputs that chance makes for each target.
const CASES: u32 = 5000;

fn folder(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target)
}

/// All files of a target's corpus, in the order of their names.
fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let Ok(entries) = std::fs::read_dir(folder(target)) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files.into_iter().map(|path| (path.clone(), std::fs::read(path).expect("a file"))).collect()
}

#[test]
fn each_target_has_its_corpus() {
    for (target, _) in TARGETS {
        let seeds = seeds::seeds(target);
        assert!(!seeds.is_empty(), "{target} has no seeds");
        for (name, bytes) in seeds {
            let path = folder(target).join(&name);
            if std::env::var_os("TORRENTFS_WRITE_CORPUS").is_some() {
                std::fs::create_dir_all(folder(target)).expect("a folder");
                std::fs::write(&path, &bytes).expect("a seed");
            }
            let found = std::fs::read(&path).unwrap_or_default();
            assert!(
                found == bytes,
                "{target}/{name} isn't as written today: TORRENTFS_WRITE_CORPUS=1 writes it anew"
            );
        }
    }
    // Nothing lies about that no target reads.
    for entry in std::fs::read_dir(folder("")).expect("the corpora") {
        let name = entry.expect("an entry").file_name();
        assert!(TARGETS.iter().any(|(target, _)| name == *target), "{name:?} is the corpus of no target");
    }
}

#[test]
fn what_is_in_the_corpora_is_read() {
    for (target, run) in TARGETS {
        for (path, bytes) in corpus(target) {
            let outcome = catch_unwind(|| run(&bytes));
            assert!(outcome.is_ok(), "{target} fails on {}", path.display());
        }
    }
}

/// What is done to an input.
#[derive(Debug, Clone)]
enum Change {
    Flip(Index, u8),
    Put(Index, Vec<u8>),
    Insert(Index, Vec<u8>),
    Cut(Index, Index),
    Repeat(Index, Index, u8),
    Splice(Index, Index, Index),
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let telling: Vec<Vec<u8>> = [0_u32, 1, 0x7f, 0x80, 0xff, 0x100, 0x7fff_ffff, 0x8000_0000, u32::MAX]
        .into_iter()
        .flat_map(|number| [number.to_be_bytes().to_vec(), number.to_le_bytes().to_vec()])
        .chain(
            ["-1", "0", "99999999999999999999", "i-0e", "e", "d", "l", "0:", "\n", "%00", "/", ".."]
                .map(|text| text.as_bytes().to_vec()),
        )
        .collect();
    let bytes = prop_oneof![select(telling), vec(any::<u8>(), 0..40)];
    let change = prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(at, bits)| Change::Flip(at, bits)),
        (any::<Index>(), bytes.clone()).prop_map(|(at, bytes)| Change::Put(at, bytes)),
        (any::<Index>(), bytes).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Change::Cut(from, to)),
        (any::<Index>(), any::<Index>(), 1..60_u8).prop_map(|(from, to, n)| Change::Repeat(from, to, n)),
        (any::<Index>(), any::<Index>(), any::<Index>()).prop_map(|(with, a, b)| Change::Splice(with, a, b)),
    ];
    vec(change, 0..6)
}

fn apply(change: &Change, input: &mut Vec<u8>, corpus: &[Vec<u8>]) {
    let at = |index: &Index, len: usize| index.index(len + 1);
    match change {
        Change::Flip(place, bits) => {
            if !input.is_empty() {
                let place = place.index(input.len());
                input[place] ^= bits;
            }
        }
        Change::Put(place, bytes) => {
            let place = at(place, input.len());
            let end = (place + bytes.len()).min(input.len());
            input.splice(place..end, bytes.iter().copied());
        }
        Change::Insert(place, bytes) => {
            let place = at(place, input.len());
            input.splice(place..place, bytes.iter().copied());
        }
        Change::Cut(from, to) => {
            let (from, to) = (at(from, input.len()), at(to, input.len()));
            input.drain(from.min(to)..from.max(to));
        }
        Change::Repeat(from, to, times) => {
            let (from, to) = (at(from, input.len()), at(to, input.len()));
            let part = input[from.min(to)..from.max(to)].repeat(usize::from(*times));
            if part.len() <= 1 << 16 {
                input.splice(from.min(to)..from.min(to), part);
            }
        }
        Change::Splice(with, here, there) => {
            let other = &corpus[with.index(corpus.len())];
            let (here, there) = (at(here, input.len()), at(there, other.len()));
            input.truncate(here);
            input.extend_from_slice(&other[there..]);
        }
    }
}

/// Runs one target over what chance makes of its corpus; prints the input that fails.
fn under_chance((target, run): &Target) {
    let corpus: Vec<Vec<u8>> = corpus(target).into_iter().map(|(_, bytes)| bytes).collect();
    let input = (any::<Index>(), changes(), vec(any::<u8>(), 0..300), 0..10_u8);
    // A handshake's keys take a millisecond.
    let cases = if target.starts_with("mse") { CASES / 20 } else { CASES };
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let outcome = runner.run(&input, |(which, changes, noise, kind)| {
        let mut input = match kind {
            0 => noise,
            _ => corpus[which.index(corpus.len())].clone(),
        };
        changes.iter().for_each(|change| apply(change, &mut input, &corpus));
        let outcome = catch_unwind(AssertUnwindSafe(|| run(&input)));
        prop_assert!(outcome.is_ok(), "{target} fails on {:?}", input.escape_ascii().to_string());
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

macro_rules! targets {
    ($($name:ident)*) => {
        /// What chance makes of the corpora, a test for each target.
        mod chance {
            $(#[test] fn $name() {
                let target = super::TARGETS.iter().find(|(target, _)| *target == stringify!($name));
                super::under_chance(target.expect("a target"));
            })*
        }
        #[test]
        fn each_target_is_run() {
            let tested = [$(stringify!($name)),*];
            assert!(TARGETS.iter().map(|(target, _)| *target).eq(tested));
        }
    };
}

targets! {
    bencode metainfo magnet wire handshake extension metadata metadata_assembly pex holepunch tracker_http tracker_udp webseed
    resume control control_answer mse mse_opening lsd filter krpc dht_saved
    dht_node utp_packet utp_port router_packets router_http router socks5 http_proxy proxy_url
}
