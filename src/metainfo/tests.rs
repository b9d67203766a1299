//! Tests of whole torrents: what libtorrent 2.0.8 made and said of it, what hostile files try, and by
//! proptest that no input panics.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::bencode::{BencodeErrorKind, Encoder};
use super::geometry::{Extent, PieceIndex};
use super::id::hex;
use super::*;
use crate::hash;

/// Made by libtorrent 2.0.8 from one tree and two files.
macro_rules! fixture {
    ($name:literal) => {
        include_bytes!(concat!("../../tests/fixtures/", $name, ".torrent"))
    };
}

const FIXTURES: [&[u8]; 7] = [
    fixture!("v1-tree"),
    fixture!("v2-tree"),
    fixture!("hybrid-tree"),
    fixture!("v1-single"),
    fixture!("v2-single"),
    fixture!("v2-small"),
    fixture!("hybrid-single"),
];

/// Path and size, `p`ad, e`x`ecutable or the target of a link.
fn listed(info: &Info) -> Vec<(String, u64, String)> {
    let kind = |file: &FileEntry| match &file.kind {
        FileKind::Symlink { target } => format!("-> {target}"),
        FileKind::Pad => "p".to_owned(),
        FileKind::Regular if file.executable => "x".to_owned(),
        FileKind::Regular => String::new(),
    };
    info.files.iter().map(|file| (file.path.join("/"), file.size, kind(file))).collect()
}

fn rows(rows: &[(&str, u64, &str)]) -> Vec<(String, u64, String)> {
    rows.iter().map(|(path, size, kind)| ((*path).to_owned(), *size, (*kind).to_owned())).collect()
}

#[test]
fn libtorrents_hashes_and_counts() {
    type Row<'a> = (&'a [u8], &'a str, Option<&'a str>, Option<&'a str>, u32, u64, bool);
    let table: [Row<'_>; 7] = [
        (
            fixture!("v1-tree"),
            "tree",
            Some("d024e1da367bd3e225ccacb1c19d8f55566b6f35"),
            None,
            4,
            126_490,
            false,
        ),
        (
            fixture!("v2-tree"),
            "tree",
            None,
            Some("211f0a6e2182515f744b504b96869da28a6dc0c074efc08f86ac6954314c9e48"),
            8,
            126_490,
            false,
        ),
        (
            fixture!("hybrid-tree"),
            "tree",
            Some("ba4df10ed312aa77e16ecd10afc6486b0acc4b97"),
            Some("0da2f1621bc54e4a1692e9cd8f41e9eb8c6153157aa6fe8b92c61dcb06066b58"),
            8,
            262_144,
            false,
        ),
        (
            fixture!("v1-single"),
            "single.bin",
            Some("b4d8ea68da8490af987f3317e8dc5becbc25c196"),
            None,
            2,
            50_000,
            true,
        ),
        (
            fixture!("v2-single"),
            "single.bin",
            None,
            Some("cfda0a1feba2bfb26fb00cfb0e66dd00ea0228c09971ce7e874e63b5b53615d9"),
            2,
            50_000,
            true,
        ),
        (
            fixture!("v2-small"),
            "small.bin",
            None,
            Some("196b1d21a74c761b3cbf9b4afe5c40cdefb8cfc6a53e62f9d4d7e304a7322bfc"),
            1,
            10_000,
            true,
        ),
        (
            fixture!("hybrid-single"),
            "single.bin",
            Some("e2c55c621f6a1cc39ab86fae3c9e5cc01672c65e"),
            Some("078e8586f18630f385b9f32ed309df219977d16e4a9559701d39fc586f39a593"),
            2,
            50_000,
            true,
        ),
    ];
    for (file, name, v1, v2, pieces, size, single) in table {
        let metainfo = Metainfo::parse(file).unwrap();
        let info = &metainfo.info;
        assert_eq!(info.name, name);
        assert_eq!(info.info_hash.v1.map(|hash| hex(&hash)).as_deref(), v1);
        assert_eq!(info.info_hash.v2.map(|hash| hex(&hash)).as_deref(), v2);
        assert_eq!((info.geometry.pieces(), info.hashes.len() as u32), (pieces, pieces), "{name}");
        assert_eq!((info.total_size(), info.single_file), (size, single), "{name}");
        assert_eq!(info.geometry.files().len(), info.files.len());
        assert!(metainfo.warnings.is_empty(), "{:?}", metainfo.warnings);
        assert!(info.info_hash.matches(&info.raw));
    }
}

#[test]
fn libtorrents_v1_tree() {
    let metainfo = Metainfo::parse(fixture!("v1-tree")).unwrap();
    assert_eq!(
        listed(&metainfo.info),
        rows(&[
            ("run.sh", 100, "x"),
            ("z.bin", 70_001, ""),
            ("empty", 0, ""),
            ("link", 0, "-> a/one.bin"),
            ("a/b/two.bin", 16_384, ""),
            ("a/zlink", 0, "-> ../z.bin"),
            ("a/one.bin", 40_000, ""),
            ("über/日本.txt", 5, ""),
        ])
    );
    assert_eq!(metainfo.info.geometry.files()[6], Extent { offset: 86_485, len: 40_000 });
    assert_eq!(metainfo.trackers, [["http://tracker.example/announce"], ["udp://tracker.example:6969"]]);
    assert_eq!(metainfo.webseeds, ["http://seed.example/"]);
    assert_eq!(metainfo.nodes, [("router.example".to_owned(), 6881)]);
    assert_eq!(metainfo.comment.as_deref(), Some("a comment"));
    assert_eq!(metainfo.created_by.as_deref(), Some("libtorrent"));
    assert_eq!(metainfo.creation_date, Some(1795221862));
    assert!(metainfo.info.private);
}

#[test]
fn libtorrents_v2_and_hybrid_trees() {
    let v2 = Metainfo::parse(fixture!("v2-tree")).unwrap().info;
    assert_eq!(
        listed(&v2),
        rows(&[
            ("a/b/two.bin", 16_384, ""),
            ("a/one.bin", 40_000, ""),
            ("a/zlink", 0, "-> ../z.bin"),
            ("empty", 0, ""),
            ("link", 0, "-> a/one.bin"),
            ("run.sh", 100, "x"),
            ("z.bin", 70_001, ""),
            ("über/日本.txt", 5, ""),
        ])
    );
    let offsets: Vec<u64> = v2.geometry.files().iter().map(|file| file.offset).collect();
    assert_eq!(offsets, [0, 32_768, 98_304, 98_304, 98_304, 98_304, 131_072, 229_376]);

    let hybrid = Metainfo::parse(fixture!("hybrid-tree")).unwrap().info;
    let shown: Vec<_> = listed(&hybrid).into_iter().filter(|(_, _, kind)| kind != "p").collect();
    assert_eq!(shown, listed(&v2));
    let pads: Vec<_> = listed(&hybrid).into_iter().filter(|(_, _, kind)| kind == "p").collect();
    assert_eq!(pads[0], (".pad/16384".to_owned(), 16_384, "p".to_owned()));
    assert_eq!(pads.len(), 5);
    assert!(matches!(hybrid.hashes, PieceHashes::V1(_)));
    let roots = |info: &Info| info.files.iter().filter_map(|file| file.pieces_root).collect::<Vec<_>>();
    assert_eq!(roots(&hybrid), roots(&v2));
    assert_eq!(hex(&roots(&v2)[0]), "7bf50e74aa5a45846506f4fc1ef9860977df41910c3927f3919e592d02bc1b5c");
}

#[test]
fn v1_pieces_root_is_optional() {
    let roots = |input: &[u8]| -> Vec<bool> {
        let info = Metainfo::parse(input).unwrap().info;
        assert!(info.geometry.all_pieces().all(|piece| info.hashes.piece(piece).is_some()));
        info.files.iter().map(|file| file.pieces_root.is_some()).collect()
    };
    assert_eq!(roots(fixture!("v1-single")), [false]);
    assert_eq!(roots(fixture!("v2-single")), [true]);
    assert_eq!(roots(fixture!("hybrid-single")), [true]);
    // A file without a root: refused where it is needed, no matter where v1 has the hashes.
    let tree = "d1:nd0:d6:lengthi5eeee";
    let v2 = format!("d9:file tree{tree}12:meta versioni2e4:name1:n12:piece lengthi16384ee");
    let rootless = Err(MetainfoError::File { file: "\"n\"".to_owned(), problem: FileProblem::NoRoot });
    assert_eq!(Info::parse(v2.as_bytes(), None).map(|_| ()), rootless);
    let hybrid = format!(
        "d4:infod9:file tree{tree}6:lengthi5e12:meta versioni2e4:name1:n12:piece lengthi16384e6:pieces20:{}ee",
        "h".repeat(20)
    );
    assert_eq!(roots(hybrid.as_bytes()), [false]);
}

#[test]
fn pieces_are_checked_against_layers() {
    let block = |byte: u8| vec![byte; 16_384];
    let leaves: Vec<[u8; 32]> = [1, 2, 3].iter().map(|&b| hash::sha256(&block(b))).collect();
    let root = hash::merkle_root(&leaves, 4);
    let layer = [hash::merkle_root(&leaves[..2], 2), hash::merkle_root(&leaves[2..], 2)].concat();
    let info = v2_info(&[("n", 3 * 16_384, Some(root))], 32_768);
    let parsed = Metainfo::parse(&v2_torrent(&info, &[(root, &layer)])).unwrap().info;
    let piece = |n| parsed.hashes.piece(PieceIndex(n)).unwrap();
    assert!(piece(0).verify(&[block(1), block(2)]));
    assert!(!piece(0).verify(&[block(1), block(3)]));
    assert!(piece(1).verify(&[block(3)]));
    // From peers, without layers, it can't be used; a file of one piece can.
    assert_eq!(Info::parse(&info, None).unwrap_err(), MetainfoError::NeedsPieceLayers);
    assert!(Info::parse(&v2_info(&[("n", 5, Some(root))], 32_768), None).is_ok());
    assert!(Info::parse(&Metainfo::parse(fixture!("hybrid-tree")).unwrap().info.raw, None).is_ok());
}

/// A v2 info dictionary of files in the root.
fn v2_info(files: &[(&str, i64, Option<[u8; 32]>)], piece_length: i64) -> Vec<u8> {
    let mut e = Encoder::new();
    e.dict_begin().key("file tree").dict_begin();
    for (name, length, root) in files {
        e.key(name).dict_begin().key("").dict_begin().key("length").int(*length);
        if let Some(root) = root {
            e.key("pieces root").bytes(root);
        }
        e.end().end();
    }
    e.end().key("meta version").int(2).key("name").bytes("n");
    e.key("piece length").int(piece_length).end();
    e.finish()
}

fn v2_torrent(info: &[u8], layers: &[([u8; 32], &[u8])]) -> Vec<u8> {
    let mut e = Encoder::new();
    e.dict_begin().key("info").raw(info).key("piece layers").dict_begin();
    for (root, layer) in layers {
        e.key(root).bytes(layer);
    }
    e.end().end();
    e.finish()
}

/// A v1 torrent whose info dictionary has `middle` before its piece length.
fn v1_torrent(middle: &str, piece_length: &str, hashes: usize) -> Vec<u8> {
    let pieces = "h".repeat(hashes);
    format!("d4:infod{middle}4:name1:n12:piece length{piece_length}6:pieces{hashes}:{pieces}ee").into_bytes()
}

/// What `parse` says, which must be one line.
fn refusal(input: &[u8]) -> String {
    let message = Metainfo::parse(input).expect_err("must be refused").to_string();
    assert!(!message.contains('\n') && message.len() < 400, "{message}");
    message
}

#[test]
fn bad_input_is_refused_by_kind() {
    let huge = |length: &str| format!("6:length{length}");
    let one = |entry: &str| v1_torrent(&format!("5:filesl{entry}e"), "i16384e", 0);
    let root = [7u8; 32];
    let v2 = |length, piece| v2_torrent(&v2_info(&[("n", length, Some(root))], piece), &[]);
    let layered =
        |length, layer: &[u8]| v2_torrent(&v2_info(&[("n", length, Some(root))], 16_384), &[(root, layer)]);
    let many: Vec<(&str, i64, Option<[u8; 32]>)> = vec![("a", i64::MAX, Some(root)), ("b", 1, Some(root))];
    let deep = [vec![b'l'; 200_000], vec![b'e'; 200_000]].concat();
    let deep_dict = [b"d1:a".repeat(200_000), vec![b'e'; 200_000]].concat();
    let path = format!("d6:lengthi0e4:pathl{}ee", "1:a".repeat(65));
    let table: Vec<(Vec<u8>, &str)> = vec![
        (b"".to_vec(), "byte 0: the input ends"),
        (b"hello".to_vec(), "byte 0: unexpected byte 0x68"),
        (b"le".to_vec(), "the file is not a dictionary"),
        (b"de".to_vec(), "`info` is missing"),
        (b"d4:info1:xe".to_vec(), "`info` is not a dictionary"),
        (b"d4:infodee".to_vec(), "`pieces` is missing"),
        (fixture!("v1-tree")[..700].to_vec(), "truncated"),
        (deep, "nested more than 128 levels"),
        (deep_dict, "nested more than 128 levels"),
        // Numbers.
        (v1_torrent(&huge("i-1e"), "i16384e", 0), "`length` is negative (-1)"),
        (v1_torrent(&huge("i9223372036854775808e"), "i16384e", 0), "does not fit in 64 bits"),
        (v1_torrent(&huge("1:5"), "i16384e", 0), "`length` is missing or not a number"),
        (v1_torrent("", "i16384e", 0), "`length` is missing"),
        (v1_torrent(&huge("i9223372036854775807e"), "i16384e", 0), "more than 16777216"),
        (one("d6:lengthi9223372036854775807e4:pathl1:aeed6:lengthi1e4:pathl1:bee"), "more than 8 EiB"),
        (one("d6:lengthi-5e4:pathl1:aee"), "file \"a\": `length` is negative (-5)"),
        (one("d6:lengthi5e4:path1:ae"), "file number 0: `path` is missing or not a list"),
        (one("d6:lengthi5e4:pathli1eee"), "file number 0: `path`"),
        (one("de"), "file number 0: `path`"),
        (one("i1e"), "file number 0: its entry is not a dictionary"),
        (one(&path), "more than 64 folders deep"),
        (one(""), "holds no files"),
        (v1_torrent("5:filesi1e", "i16384e", 0), "`files` is not a list"),
        // Piece length.
        (v1_torrent(&huge("i5e"), "i0e", 20), "`piece length` is 0"),
        (v1_torrent(&huge("i5e"), "i-16384e", 20), "`piece length` is -16384"),
        (v1_torrent(&huge("i5e"), "i1073741825e", 20), "at most 1 GiB"),
        (v1_torrent(&huge("i5e"), "2:xx", 20), "`piece length` is not a number"),
        (b"d4:infod6:lengthi5e6:pieces0:ee".to_vec(), "`piece length` is missing"),
        (v2(5, 8192), "power of two of at least 16 KiB"),
        (v2(5, 49_152), "power of two of at least 16 KiB"),
        // Hashes.
        (v1_torrent(&huge("i5e"), "i16384e", 19), "`pieces` has 19 bytes of hashes, but 1 pieces need 20"),
        (v1_torrent(&huge("i5e"), "i16384e", 40), "`pieces` has 40 bytes"),
        (v1_torrent(&huge("i16385e"), "i16384e", 20), "2 pieces need 40"),
        (b"d4:infod6:lengthi5e12:piece lengthi16384e6:piecesi5eee".to_vec(), "`pieces` is not a string"),
        // v2.
        (v2(50_000, 16_384), "file \"n\": its piece layer is missing"),
        (layered(50_000, &[0; 64]), "file \"n\": its piece layer has 64 bytes of hashes instead of 128"),
        (layered(50_000, &[0; 128]), "file \"n\": its piece layer does not match its `pieces root`"),
        (v2_torrent(&v2_info(&[("n", 5, None)], 16_384), &[]), "file \"n\": `pieces root` is missing"),
        (layered(50_000, &[0; 31]), "`piece layers` does not map"),
        (v2_torrent(&v2_info(&many, 16_384), &[]), "more than 8 EiB"),
        (v2_torrent(&v2_info(&[("n", 1 << 60, Some(root))], 16_384), &[]), "more than 16777216"),
        (v2_torrent(&v2_info(&[("n", -1, Some(root))], 16_384), &[]), "`length` is negative"),
        (v2_torrent(&v2_info(&[], 16_384), &[]), "holds no files"),
        (b"d4:infod9:file treede4:name1:nee".to_vec(), "`meta version` is missing"),
        (b"d4:infod12:meta versioni3eee".to_vec(), "`meta version` is 3"),
        (b"d4:infod12:meta versioni2e12:piece lengthi16384eee".to_vec(), "`file tree` is missing"),
        (file_tree("i1e"), "`file tree` is not a dictionary"),
        (file_tree("d1:ai1ee"), "file \"a\": its entry is not a dictionary"),
        (file_tree("d1:ad0:i1eee"), "file \"a\": its entry is not a dictionary"),
        (file_tree("d1:ad0:d6:lengthi0ee1:bdeee"), "both a file and a folder"),
        (file_tree("d1:ad1:bde0:d6:lengthi0eeee"), "both a file and a folder"),
        (file_tree("d0:d6:lengthi0eee"), "both a file and a folder"),
        (file_tree("d1:ad0:d6:lengthi1e11:pieces root3:abceee"), "`pieces root` has 3 bytes"),
        (file_tree(&("d1:a".repeat(65) + "de" + &"e".repeat(65))), "more than 64 folders deep"),
    ];
    for (input, expected) in &table {
        let message = refusal(input);
        assert!(message.contains(expected), "{message:?} should say {expected:?}");
    }
}

/// A v2 torrent with this file tree.
fn file_tree(tree: &str) -> Vec<u8> {
    format!("d4:infod9:file tree{tree}12:meta versioni2e4:name1:n12:piece lengthi16384eee").into_bytes()
}

#[test]
fn hybrids_must_agree() {
    let hybrid = |v1: &str, tree: &str| {
        let text = format!(
            "d4:infod9:file tree{tree}{v1}12:meta versioni2e4:name1:n12:piece lengthi16384e6:pieces20:{}ee",
            "h".repeat(20)
        );
        Metainfo::parse(text.as_bytes()).map(|metainfo| listed(&metainfo.info))
    };
    let root = "11:pieces root32:".to_owned() + &"r".repeat(32);
    let leaf = |name: &str, size| format!("1:{name}d0:d6:lengthi{size}e{root}ee");
    let file = |name: &str, size| format!("d6:lengthi{size}e4:pathl1:{name}ee");
    let two = format!("d{}{}e", leaf("a", 3), leaf("b", 4));
    let list = |files: &[String]| format!("5:filesl{}e", files.concat());
    let pad = "d4:attr1:p6:lengthi9e4:pathl4:.pad1:9ee".to_owned();

    let good = hybrid(&list(&[file("a", 3), pad, file("b", 4)]), &two).unwrap();
    assert_eq!(good, rows(&[("a", 3, ""), (".pad/9", 9, "p"), ("b", 4, "")]));
    assert!(hybrid(&list(&[file("b", 4), file("a", 3)]), &two).is_ok());
    for (v1, what) in [
        (list(&[file("a", 3)]), "\"b\" is only in v2"),
        (list(&[file("a", 3), file("b", 5)]), "\"b\" has two sizes"),
        (list(&[file("a", 3), file("b", 4), file("c", 0)]), "\"c\" is only in v1"),
        (list(&[file("a", 3), file("b", 4), file("b", 4)]), "\"b\" is only in v1"),
        ("6:lengthi7e".to_owned(), "\"n\" is only in v1"),
    ] {
        assert_eq!(hybrid(&v1, &two), Err(MetainfoError::HybridMismatch(what.to_owned())));
    }
}

#[test]
fn names_are_made_safe_and_bad_links_left_out() {
    let file = |path: &str, more: &str| {
        let parts: String = path.split('|').map(|part| format!("{}:{part}", part.len())).collect();
        format!("d{more}6:lengthi0e4:pathl{parts}ee")
    };
    let link = |path: &str, target: &str| {
        let parts: String = target.split('|').map(|part| format!("{}:{part}", part.len())).collect();
        let entry = file(path, "4:attr1:l");
        format!("{}12:symlink pathl{parts}ee", &entry[..entry.len() - 1])
    };
    let files = [
        file("..|..|etc|passwd", ""),
        file("/abs", ""),
        file("a/b\0c", ""),
        file("d|f", "4:attr2:hx"),
        file("d", ""),
        file("d|f", ""),
        link("d|up", "..|..|f"),
        link("d|out", "..|..|..|etc|passwd"),
        link("abs", "/etc|passwd"),
        link("d|good", "d|f"),
        link("root", "d"),
        link("gone", "nothing"),
        file("nolink", "4:attr1:l"),
    ];
    let metainfo = Metainfo::parse(&v1_torrent(&format!("5:filesl{}e", files.concat()), "i1e", 0)).unwrap();
    assert_eq!(
        listed(&metainfo.info),
        rows(&[
            ("etc/passwd", 0, ""),
            ("_abs", 0, ""),
            ("a_b_c", 0, ""),
            ("d/f", 0, "x"),
            ("d (1)", 0, ""),
            ("d/f (1)", 0, ""),
            ("d/good", 0, "-> f"),
            ("root", 0, "-> d"),
        ])
    );
    assert_eq!(metainfo.warnings.len(), 5);
    assert_eq!(metainfo.warnings[0], "symlink \"d/up\" leads out of the torrent or to nothing; left out");

    // A bad link that has a size stays in the geometry.
    let sized = "5:filesld4:attr1:l6:lengthi4e4:pathl1:leed6:lengthi2e4:pathl1:feee";
    let info = Metainfo::parse(&v1_torrent(sized, "i16384e", 20)).unwrap().info;
    assert_eq!(listed(&info), rows(&[("l", 4, "p"), ("f", 2, "")]));
    assert_eq!(info.geometry.files()[1].offset, 4);

    // A single file that is such a link leaves an empty folder.
    let info = Metainfo::parse(&v1_torrent("4:attr1:l6:lengthi0e", "i1e", 0)).unwrap().info;
    assert!(info.files.is_empty() && !info.single_file);
}

#[test]
fn names_of_the_torrent() {
    let name = |keys: &str| {
        let text = format!("d4:infod6:lengthi0e{keys}12:piece lengthi1e6:pieces0:ee");
        let metainfo = Metainfo::parse(text.as_bytes()).unwrap();
        let info = metainfo.info;
        assert_eq!(info.files[0].path, [info.name.as_str()]);
        let stands_in = info.name == info.info_hash.to_string();
        assert_eq!(stands_in, !metainfo.warnings.is_empty());
        if stands_in { "hash".to_owned() } else { info.name.clone() }
    };
    for (keys, expected) in [
        ("4:name5:a.txt", "a.txt"),
        ("4:name2:..", "hash"),
        ("4:name0:", "hash"),
        ("4:namei5e", "hash"),
        ("", "hash"),
        ("4:name6:../../", ".._.._"),
        ("4:name1:x10:name.utf-82:é", "é"),
        ("4:name1:x10:name.utf-80:", "x"),
    ] {
        assert_eq!(name(keys), expected, "{keys}");
    }
    let list = "5:filesld6:lengthi0e4:pathl1:xe10:path.utf-8l2:é1:yeee";
    let info = Metainfo::parse(&v1_torrent(list, "i1e", 0)).unwrap().info;
    assert_eq!(listed(&info), rows(&[("é/y", 0, "")]));
}

#[test]
fn what_stands_around_the_info_is_read_leniently() {
    let info = "4:infod6:lengthi0e4:name1:n12:piece lengthi1e6:pieces0:e";
    let parse = |more: &str| Metainfo::parse(format!("d{more}{info}e").as_bytes()).unwrap();

    assert_eq!(parse("8:announce3:a:b").trackers, [["a:b"]]);
    let m = parse("8:announce1:x13:announce-listll1:a2: be1:cl1:ae0:i5elee");
    assert_eq!(m.trackers, [vec!["a".to_owned(), "b".to_owned()], vec!["c".to_owned()]]);
    assert_eq!(m.warnings, ["one of the trackers is not a text; skipped"]);
    assert_eq!(parse("8:announce1:x13:announce-listle").trackers, [["x"]]);
    assert!(parse("8:announcei5e").trackers.is_empty());
    let m = parse("8:url-list8:http://w");
    assert_eq!((m.webseeds, m.warnings.len()), (vec!["http://w".to_owned()], 0));
    let m = parse("8:url-listl8:http://w0:1: 11: HTTPS://v 8:http://wi5ee9:httpseedsl8:http://he");
    assert_eq!(
        (m.webseeds, m.http_seeds),
        (vec!["http://w".to_owned(), "HTTPS://v".to_owned()], vec!["http://h".to_owned()])
    );
    assert_eq!(m.warnings, ["one of the webseeds is not a text; skipped"]);
    assert_eq!(parse("9:httpseeds8:http://h").http_seeds, ["http://h"]);
    assert_eq!(parse("8:url-list0:9:httpseedsle").warnings.len(), 0);
    assert_eq!(parse("8:url-listde9:httpseedsi1e").webseeds.len(), 0);
    for (bad, why) in [
        ("w/x", "not a URL (relative URL without a base)"),
        ("/w", "not a URL (relative URL without a base)"),
        ("http://", "not a URL (empty host)"),
        ("ftp://w/", "ftp is not supported, only http and https are"),
        ("file:///etc", "file is not supported, only http and https are"),
    ] {
        for (key, what) in [("8:url-list", "webseeds"), ("9:httpseeds", "HTTP seeds")] {
            let m = parse(&format!("{key}l{}:{bad}8:http://we", bad.len()));
            assert_eq!([m.webseeds, m.http_seeds].concat(), ["http://w"]);
            assert_eq!(m.warnings, [format!("one of the {what}, {bad}, can't be used: {why}; skipped")]);
        }
    }
    assert_eq!(
        parse("8:url-list10:http://a\nb").warnings,
        ["one of the webseeds is not a usable URL; skipped"]
    );
    let many: String = (0..500).map(|i| format!("12:http://w/{i:03}")).collect();
    let m = parse(&format!("8:url-listl{many}e"));
    assert_eq!((m.webseeds.len(), m.warnings.len()), (MAX_WEBSEEDS, 1));
    let m = parse("5:nodesll1:hi5eel1:hi0eel3:a bi5eel2:::i65535eei7ee");
    assert_eq!(m.nodes, [("h".to_owned(), 5), ("::".to_owned(), 65_535)]);
    assert_eq!(m.warnings.len(), 3);
    assert_eq!(parse("13:creation datei-5e").creation_date, Some(-5));
    assert_eq!(parse("13:creation date1:x").creation_date, None);
    assert_eq!(parse("7:comment3:a\nb").comment.as_deref(), Some("a\nb"));

    let urls: String = (0..500).map(|i| format!("l4:u{i:03}e")).collect();
    let m = parse(&format!("13:announce-listl{urls}e"));
    assert_eq!(m.trackers.len(), MAX_URLS);
    assert!(m.warnings.len() <= 21, "{}", m.warnings.len());
}

#[test]
fn millions_of_files_in_few_bytes_cost_little() {
    let begun = Instant::now();
    let v1 = |entry: &str, count: usize| v1_torrent(&format!("5:filesl{}e", entry.repeat(count)), "i1e", 0);
    // A million entries that say nothing.
    assert!(refusal(&v1("de", 1_000_000)).contains("file number 0"));
    assert!(refusal(&v1("0:", 1_000_000)).contains("file number 0"));
    assert!(refusal(&v1("le", 10_000_000)).contains("more than 16777216 values"));
    // As many files as fit in 2 MB, all of one name.
    let info = Metainfo::parse(&v1("d6:lengthi0e4:pathl1:aee", 87_000)).unwrap().info;
    assert_eq!(info.files.len(), 87_000);
    // One path of a million components, and one of a million symlinks' components.
    let path = format!("d6:lengthi0e4:pathl{}ee", "1:a".repeat(700_000));
    assert!(refusal(&v1(&path, 1)).contains("folders deep"));
    // Sixty-three folders with names as long as can be, over and over: a tree says it once.
    let long = format!("255:{}", "x".repeat(255));
    let files: String = (0..80_000).map(|i| format!("5:{i:05}d0:d6:lengthi0eee")).collect();
    let folders = format!("d{long}").repeat(62);
    let tree = format!("{folders}d{files}e{}", "e".repeat(62));
    assert!(refusal(&file_tree(&tree)).contains("paths of the files would take"));
    // One layer that thousands of files share: counted, not copied.
    let layer = vec![0u8; 32 * 20_000];
    let root = hash::piece_layer_root(&layer, 1);
    let names: Vec<String> = (0..2000).map(|i| i.to_string()).collect();
    let files: Vec<_> = names.iter().map(|name| (name.as_str(), 20_000 * 16_384, Some(root))).collect();
    assert!(refusal(&v2_torrent(&v2_info(&files, 16_384), &[(root, &layer)])).contains("40000000 pieces"));
    let info = v2_info(&files[..500], 16_384);
    let info = Metainfo::parse(&v2_torrent(&info, &[(root, &layer)])).unwrap().info;
    assert_eq!(info.hashes.len(), 10_000_000);
    assert_eq!(info.hashes.piece(PieceIndex(9_999_999)), Some(PieceHash::V2 { root: [0; 32], leaves: 1 }));
    // Generous: it takes some seconds on a slow machine without optimisation, and minutes if anything of it
    // is quadratic.
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
}

#[test]
fn every_cut_of_a_fixture_is_refused() {
    for fixture in FIXTURES {
        for cut in 0..fixture.len() {
            let error = Metainfo::parse(&fixture[..cut]).unwrap_err();
            assert!(
                matches!(&error, MetainfoError::Bencode(e) if e.kind == BencodeErrorKind::Truncated),
                "{cut}: {error}"
            );
        }
    }
}

/// A value that is likely to be in the way.
fn any_value() -> impl Strategy<Value = Vec<u8>> {
    let leaf = prop_oneof![
        prop_oneof![
            Just(0i64),
            Just(-1),
            Just(i64::MAX),
            Just(i64::MIN),
            Just(1),
            Just(2),
            Just(16_384),
            any::<i64>()
        ]
        .prop_map(|n| format!("i{n}e").into_bytes()),
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..4),
            Just(vec![b'h'; 20]),
            Just(vec![b'h'; 32]),
            Just(b"..".to_vec()),
            Just(b"lxp".to_vec()),
        ]
        .prop_map(|bytes| [format!("{}:", bytes.len()).into_bytes(), bytes].concat()),
    ];
    leaf.prop_recursive(5, 40, 4, |inner| {
        let key = prop_oneof![
            Just("length"),
            Just("path"),
            Just("attr"),
            Just("symlink path"),
            Just(""),
            Just("pieces root"),
            Just("a"),
            Just("n"),
        ];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(|items| [
                b"l",
                &items.concat()[..],
                b"e"
            ]
            .concat()),
            proptest::collection::vec((key, inner), 0..5).prop_map(|entries| {
                let entries: Vec<u8> = entries
                    .into_iter()
                    .flat_map(|(key, value)| [format!("{}:{key}", key.len()).into_bytes(), value].concat())
                    .collect();
                [b"d", &entries[..], b"e"].concat()
            }),
        ]
    })
}

/// Reads everything there is to read.
fn use_all(metainfo: &Metainfo) {
    let info = &metainfo.info;
    let inspection = inspect::Inspection::new(metainfo);
    assert!(!inspection.text().contains('\u{1b}'));
    assert_eq!(info.files.len(), info.geometry.files().len());
    assert_eq!(info.hashes.len() as u32, info.geometry.pieces());
    let spans: u64 = info.geometry.spans(0, info.geometry.end()).map(|span| span.len).sum();
    assert_eq!(spans, info.total_size());
    for piece in info.geometry.all_pieces().take(100) {
        assert!(info.geometry.piece_len(piece) > 0);
        assert!(!info.hashes.piece(piece).unwrap().verify(&[b"no"]));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_input_panics(
        name in any_value(), files in any_value(), tree in any_value(), length in any_value(),
        version in 0..4i64, layers in any_value(), has in any::<[bool; 4]>(),
        hashes in prop_oneof![Just(0usize), Just(20), Just(40), Just(7)],
    ) {
        let mut e = Encoder::new();
        e.dict_begin().key("announce-list").raw(&files).key("nodes").raw(&files).key("info").dict_begin();
        if has[0] {
            e.key("files").raw(&files);
        }
        if has[1] {
            e.key("file tree").raw(&tree);
        }
        if has[2] {
            e.key("pieces").bytes(vec![b'h'; hashes]);
        }
        e.key("length").raw(&length).key("meta version").int(version).key("name").raw(&name);
        e.key("piece length").int(16_384).key("symlink path").raw(&tree).end();
        if has[3] {
            e.key("piece layers").raw(&layers);
        }
        e.end();
        match Metainfo::parse(&e.finish()) {
            Ok(metainfo) => use_all(&metainfo),
            Err(error) => prop_assert!(!error.to_string().contains('\n')),
        }
    }

    #[test]
    fn no_edit_of_a_real_torrent_panics(
        which in 0..FIXTURES.len(), edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = FIXTURES[which].to_vec();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(metainfo) = Metainfo::parse(&bytes) {
            use_all(&metainfo);
        }
    }
}
