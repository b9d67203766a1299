//! What `torrentfs inspect` prints: the JSON that programs rely on, and a text for people. Pure.
//!
//! The names of the JSON's fields are part of the command line's contract. What is absent is null: also
//! `trackers` and `webseeds` when there are none.

use std::fmt::Write;

use serde::Serialize;

use super::id::hex;
use super::path::escape;
use super::{FileEntry, FileKind, Metainfo};

/// What a torrent holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// As shown in the mount.
    pub name: String,
    /// Hex.
    pub infohash_v1: Option<String>,
    /// Hex.
    pub infohash_v2: Option<String>,
    /// Bytes.
    pub piece_length: u32,
    /// How many.
    pub pieces: u32,
    /// Bytes of all files, pad files included.
    pub total_size: u64,
    /// BEP 27.
    pub private: bool,
    /// Tiers.
    pub trackers: Option<Vec<Vec<String>>>,
    /// BEP 19, then those of BEP 17.
    pub webseeds: Option<Vec<String>>,
    /// In the torrent's order.
    pub files: Vec<InspectedFile>,
}

/// A file of a torrent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InspectedFile {
    /// From the torrent's root, with `/`, as shown in the mount.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Not mounted.
    pub pad: bool,
    /// What a symlink reads.
    pub symlink: Option<String>,
    /// BEP 47.
    pub executable: bool,
}

impl Inspection {
    /// Sums a torrent up.
    pub fn new(metainfo: &Metainfo) -> Self {
        let info = &metainfo.info;
        Self {
            name: info.name.clone(),
            infohash_v1: info.info_hash.v1.map(|hash| hex(&hash)),
            infohash_v2: info.info_hash.v2.map(|hash| hex(&hash)),
            piece_length: info.geometry.piece_length(),
            pieces: info.geometry.pieces(),
            total_size: info.total_size(),
            private: info.private,
            trackers: Some(metainfo.trackers.clone()).filter(|list| !list.is_empty()),
            webseeds: Some([&metainfo.webseeds[..], &metainfo.http_seeds].concat())
                .filter(|list| !list.is_empty()),
            files: info.files.iter().map(InspectedFile::new).collect(),
        }
    }

    /// For people, with control characters escaped; ends with a line break.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let mut line = |name: &str, value: String| {
            // Writing to a String doesn't fail.
            let _ = writeln!(out, "{name:<13} {}", escape(&value));
        };
        line("name", self.name.clone());
        for (name, hash) in [("infohash v1", &self.infohash_v1), ("infohash v2", &self.infohash_v2)] {
            if let Some(hash) = hash {
                line(name, hash.clone());
            }
        }
        line("size", format!("{} ({} bytes)", human(self.total_size), self.total_size));
        line("pieces", format!("{} of {}", self.pieces, human(u64::from(self.piece_length))));
        line("private", if self.private { "yes" } else { "no" }.to_owned());
        for (number, tier) in (1..).zip(self.trackers.iter().flatten()) {
            line(&format!("tracker {number}"), tier.join(" "));
        }
        for url in self.webseeds.iter().flatten() {
            line("webseed", url.clone());
        }
        let shown = self.files.iter().filter(|file| !file.pad);
        line("files", format!("{}", shown.clone().count()));
        for file in shown {
            let mark = if file.executable { " *" } else { "" };
            let target = file.symlink.iter().map(|target| format!(" -> {}", escape(target)));
            let _ = writeln!(
                out,
                "{:>12}  {}{mark}{}",
                human(file.size),
                escape(&file.path),
                target.collect::<String>()
            );
        }
        out
    }
}

impl InspectedFile {
    fn new(file: &FileEntry) -> Self {
        Self {
            path: file.path.join("/"),
            size: file.size,
            pad: file.kind == FileKind::Pad,
            symlink: match &file.kind {
                FileKind::Symlink { target } => Some(target.clone()),
                FileKind::Regular | FileKind::Pad => None,
            },
            executable: file.executable,
        }
    }
}

/// A size with a binary unit.
fn human(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = UNITS[0];
    for larger in &UNITS[1..] {
        if value < 1023.95 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    format!("{value:.1} {unit}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    const TORRENT: &[u8] =
        b"d4:infod5:filesld4:attr1:x6:lengthi5e4:pathl1:d3:a\x1bbeed4:attr1:p6:lengthi3e4:pathl4:.pad1:3ee\
        d4:attr1:l6:lengthi0e4:pathl1:l1:le12:symlink pathl1:dee\
        e4:name1:n12:piece lengthi16384e6:pieces20:01234567890123456789ee";

    fn sample() -> Metainfo {
        Metainfo::parse(TORRENT).unwrap()
    }

    #[test]
    fn json_has_the_names_that_were_promised() {
        let json = serde_json::to_value(Inspection::new(&sample())).unwrap();
        let hash = sample().info.info_hash.to_string();
        assert_eq!(
            json,
            serde_json::json!({
                "name": "n", "infohash_v1": hash, "infohash_v2": null, "piece_length": 16384, "pieces": 1,
                "total_size": 8, "private": false, "trackers": null, "webseeds": null,
                "files": [
                    {"path": "d/a\u{1b}b", "size": 5, "pad": false, "symlink": null, "executable": true},
                    {"path": ".pad/3", "size": 3, "pad": true, "symlink": null, "executable": false},
                    {"path": "l/l", "size": 0, "pad": false, "symlink": "../d", "executable": false},
                ],
            })
        );
    }

    #[test]
    fn both_kinds_of_webseeds_are_told() {
        let torrent = [&b"d9:httpseeds8:http://h8:url-list8:http://u"[..], &TORRENT[1..]].concat();
        let inspection = Inspection::new(&Metainfo::parse(&torrent).unwrap());
        assert_eq!(inspection.webseeds.unwrap(), ["http://u", "http://h"]);
    }

    #[test]
    fn the_text_drives_no_terminal() {
        let text = Inspection::new(&sample()).text();
        assert!(!text.contains('\u{1b}'));
        assert!(text.contains("d/a\\u{1b}b *\n") && text.contains("l/l -> ../d\n"), "{text}");
        assert!(!text.contains(".pad"), "{text}");
    }

    #[test]
    fn sizes_for_people() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1 << 20, "1.0 MiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }
}
