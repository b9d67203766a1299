//! Which torrent is meant by a name or an info-hash. Pure.

use super::message::{Code, Refusal};
use crate::metainfo::Source;
use crate::metainfo::id::{InfoHash, hex};

/// The least digits of an info-hash that name a torrent: as many as tell torrents of equal names apart in a mount.
const SHORT: usize = 8;
/// Names told at most when none fits: enough to see a slip.
const NAMED_MAX: usize = 8;

/// A torrent that may be meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// Its name as shown in the mount, which no other has.
    pub shown: &'a str,
    /// Its own name, which others may have.
    pub own: &'a str,
    /// What it is.
    pub info_hash: InfoHash,
}

/// The place of the torrent that is meant among `all`. A name as shown comes first; then an info-hash, or at least 8
/// digits of one, and the names that torrents have by themselves.
///
/// # Errors
/// [`Code::NotFound`] and [`Code::Ambiguous`], with what it could be.
pub fn meant(given: &str, all: &[Candidate<'_>]) -> Result<usize, Refusal> {
    // As a shell completes the name of a folder.
    let name = given.trim_end_matches('/');
    if let Some(at) = all.iter().position(|candidate| candidate.shown == name) {
        return Ok(at);
    }
    let digits = digits(name);
    let fits = |candidate: &Candidate<'_>| {
        let begins = |hash: Option<String>| {
            digits.as_ref().zip(hash).is_some_and(|(digits, hash)| hash.starts_with(digits.as_str()))
        };
        let hash = candidate.info_hash;
        candidate.own == name || begins(hash.v1.map(|v1| hex(&v1))) || begins(hash.v2.map(|v2| hex(&v2)))
    };
    let found: Vec<usize> = (0..all.len()).filter(|at| all.get(*at).is_some_and(fits)).collect();
    match found[..] {
        [at] => Ok(at),
        [] => {
            let names = list(all.iter());
            let refusal = Refusal::new(Code::NotFound, "there is no such torrent in the mount");
            Err(refusal.hint(if all.is_empty() {
                "there are none".into()
            } else {
                format!("there are: {names}")
            }))
        }
        _ => {
            let names = list(found.iter().filter_map(|at| all.get(*at)));
            let refusal = Refusal::new(Code::Ambiguous, format!("several torrents fit: {names}"));
            Err(refusal.hint("give its name as the mount shows it, or more of its info-hash"))
        }
    }
}

/// The info-hash that was given, or its beginning, in hex.
fn digits(given: &str) -> Option<String> {
    match Source::parse(given) {
        // Base32 as well.
        Ok(Source::InfoHash(hash)) => Some(hash.to_string()),
        _ => {
            let is_hex = given.len() >= SHORT && given.bytes().all(|b| b.is_ascii_hexdigit());
            is_hex.then(|| given.to_ascii_lowercase())
        }
    }
}

fn list<'a>(candidates: impl Iterator<Item = &'a Candidate<'a>> + Clone) -> String {
    let count = candidates.clone().count();
    let mut names: Vec<String> = candidates
        .take(NAMED_MAX)
        .map(|candidate| format!("{} ({})", candidate.shown, candidate.info_hash.short8()))
        .collect();
    if count > NAMED_MAX {
        names.push(format!("{} more", count - NAMED_MAX));
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn all() -> [Candidate<'static>; 5] {
        let v1 = |byte: u8| InfoHash::from_v1([byte; 20]);
        let both = InfoHash { v1: Some([0xcc; 20]), v2: Some([0xdd; 32]) };
        [
            Candidate { shown: "x [aaaaaaaa]", own: "x", info_hash: v1(0xaa) },
            Candidate { shown: "x [bbbbbbbb]", own: "x", info_hash: v1(0xbb) },
            Candidate { shown: "film.mkv", own: "film.mkv", info_hash: both },
            // Called as another one's hash begins, and one that has the beginning of its hash in common with it.
            Candidate { shown: "aaaaaaaa", own: "aaaaaaaa", info_hash: v1(0x11) },
            Candidate {
                shown: "y.resolving",
                own: "y",
                info_hash: InfoHash::from_v1([
                    0xaa, 0xaa, 0xaa, 0xaa, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                ]),
            },
        ]
    }

    #[test]
    fn names_and_hashes() {
        let whole = "a".repeat(40);
        let v2 = "d".repeat(64);
        let rows: [(&str, Result<usize, Code>); 14] = [
            ("x [aaaaaaaa]", Ok(0)),
            ("film.mkv", Ok(2)),
            ("film.mkv/", Ok(2)),
            ("FILM.mkv", Err(Code::NotFound)),
            ("x", Err(Code::Ambiguous)),
            ("aaaaaaaa", Ok(3)),
            ("AAAAAAAAA", Ok(0)),
            ("aaaaaaaa01", Ok(4)),
            (&whole, Ok(0)),
            ("cccccccc", Ok(2)),
            (&v2, Ok(2)),
            ("bbbbbbb", Err(Code::NotFound)),
            ("y", Ok(4)),
            ("", Err(Code::NotFound)),
        ];
        for (given, want) in rows {
            assert_eq!(meant(given, &all()).map_err(|refusal| refusal.code), want, "{given}");
        }
        let refusal = meant("x", &all()).unwrap_err();
        assert!(refusal.message.contains("x [aaaaaaaa] (aaaaaaaa), x [bbbbbbbb] (bbbbbbbb)"), "{refusal}");
        let hint = meant("nothing", &all()).unwrap_err().hint.unwrap();
        assert!(hint.contains("film.mkv (cccccccc)"), "{hint}");
        assert_eq!(meant("x", &[]).unwrap_err().hint.unwrap(), "there are none");
        let many: Vec<String> = (0..20).map(|n| format!("t{n}")).collect();
        let many: Vec<_> = many
            .iter()
            .map(|name| Candidate { shown: name, own: name, info_hash: InfoHash::from_v1([1; 20]) })
            .collect();
        assert!(meant("nothing", &many).unwrap_err().hint.unwrap().ends_with("12 more"));
    }
}
