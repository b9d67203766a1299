//! What is to be done about a watched folder: from what lies there now, and what is known of it. Pure.
//!
//! **Flow.** [`Plan::seen`] takes a listing and says which files are to be read: the new ones, and those that aren't what
//! they were. [`Plan::loaded`] takes what came of each and says whether its torrent is to be added. When all of them are
//! in, [`Plan::webseeds`] says of which torrents the files name other webseeds now, all that stand for one together, and
//! [`Plan::gone`] which torrents no file stands for any more. In this order a file that is renamed, or replaced
//! by one with the same torrent, takes nothing away. [`Plan::complaints`] says what is wrong with which file, once, and
//! not before it has stayed as it is for a while: it may just be being written.
//!
//! A file that was good and can't be read now stands for what it did, until it is good again or gone.
//!
//! **Not here.** Reading anything, and torrents that somebody else added.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::{OsStr, OsString};
use std::time::{Duration, Instant};

use crate::webseed::Seed;

/// How long a file that can't be used must stay as it is before that is worth a word: a program that writes it pauses
/// for less.
const QUIET: Duration = Duration::from_secs(2);

/// A torrent, by the 20 bytes that peers know it by.
pub(super) type Key = [u8; 20];

/// By what a changed file is told from the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    /// Its length in bytes.
    pub(super) len: u64,
    /// Its device and inode.
    pub(super) inode: (u64, u64),
    /// When its content was changed, in seconds and nanoseconds.
    pub(super) modified: (i64, i64),
    /// When anything of it was changed.
    pub(super) changed: (i64, i64),
}

#[derive(Debug)]
struct File {
    stamp: Stamp,
    /// What it stands for.
    key: Option<Key>,
    /// The webseeds that it names.
    seeds: Vec<Seed>,
    /// Why it can't be used as it is, and since when.
    bad: Option<(String, Instant)>,
    /// Whether somebody was told of it.
    told: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Plan {
    files: BTreeMap<OsString, File>,
    /// The torrents that were to be added.
    added: BTreeSet<Key>,
    /// The webseeds that their files named when they were asked for last; torrents without any are left out.
    seeds: BTreeMap<Key, Vec<Seed>>,
    /// Torrents of which a file came, changed or went since then; whether it is there and somebody was at it.
    moved: BTreeMap<Key, bool>,
}

/// What is to be done about a file that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// Its torrent is to be added.
    Add,
    /// Its torrent is there: it gets what the file knows of besides.
    Extend,
    /// Nothing.
    Nothing,
}

impl Plan {
    /// These files are there; of those in `touched` it is known that something was done to them. Returns the ones to be
    /// read, sorted.
    pub(super) fn seen(
        &mut self,
        present: BTreeMap<OsString, Stamp>,
        touched: &HashSet<OsString>,
    ) -> Vec<OsString> {
        let moved = &mut self.moved;
        self.files.retain(|name, file| {
            let stays = present.contains_key(name);
            if !stays && let Some(key) = file.key {
                moved.entry(key).or_default();
            }
            stays
        });
        let mut load = Vec::new();
        for (name, stamp) in present {
            match self.files.get_mut(&name) {
                Some(file) if file.stamp == stamp && !touched.contains(&name) => continue,
                Some(file) => file.stamp = stamp,
                None => {
                    let file = File { stamp, key: None, seeds: Vec::new(), bad: None, told: false };
                    self.files.insert(name.clone(), file);
                }
            }
            load.push(name);
        }
        load
    }

    /// A file that was to be read stands for this torrent and names these webseeds, or can't be used. The torrent is to be
    /// added if it is new, or isn't `here` any more, since somebody removed it otherwise.
    pub(super) fn loaded(
        &mut self,
        name: &OsStr,
        found: Result<(Key, Vec<Seed>), String>,
        here: impl FnOnce(Key) -> bool,
        now: Instant,
    ) -> Then {
        let Some(file) = self.files.get_mut(name) else { return Then::Nothing };
        match found {
            Ok((key, seeds)) => {
                if let Some(before) = file.key.replace(key) {
                    self.moved.entry(before).or_default();
                }
                self.moved.insert(key, true);
                file.seeds = seeds;
                file.bad = None;
                file.told = false;
                if self.added.insert(key) || !here(key) {
                    // Another one, which nobody told of any webseed.
                    self.seeds.remove(&key);
                    return Then::Add;
                }
                Then::Extend
            }
            Err(why) => {
                file.bad = Some((why, now));
                Then::Nothing
            }
        }
    }

    /// A torrent can't be added yet: its files are read again next time.
    pub(super) fn put_off(&mut self, key: Key) {
        self.added.remove(&key);
        self.seeds.remove(&key);
        self.files.retain(|_, file| file.key != Some(key));
    }

    /// A torrent could not be added.
    pub(super) fn failed(&mut self, key: Key, why: &str, now: Instant) {
        self.added.remove(&key);
        self.seeds.remove(&key);
        for file in self.files.values_mut().filter(|file| file.key == Some(key)) {
            file.key = None;
            file.bad = Some((why.to_owned(), now));
        }
    }

    /// The torrents whose files name other webseeds than when this was asked last, or the same while somebody was at one
    /// of them, which is a wish to have them tried once more: each with all that its files name, none if there is no file
    /// any more. To be asked when all files are read.
    pub(super) fn webseeds(&mut self) -> Vec<(Key, Vec<Seed>)> {
        let moved = std::mem::take(&mut self.moved);
        let mut named: BTreeMap<Key, Vec<Seed>> = moved.keys().map(|key| (*key, Vec::new())).collect();
        for file in self.files.values() {
            let Some(all) = file.key.and_then(|key| named.get_mut(&key)) else { continue };
            for seed in &file.seeds {
                match all.iter_mut().find(|known| (&known.url, known.kind) == (&seed.url, seed.kind)) {
                    Some(known) => known.trusted |= seed.trusted,
                    None => all.push(seed.clone()),
                }
            }
        }
        named.retain(|key, seeds| {
            let before = if seeds.is_empty() {
                self.seeds.remove(key)
            } else {
                self.seeds.insert(*key, seeds.clone())
            };
            let touched = moved.get(key).is_some_and(|touched| *touched) && !seeds.is_empty();
            touched || before.unwrap_or_default() != *seeds
        });
        named.into_iter().collect()
    }

    /// The torrents that no file stands for any more: they are to be removed. To be asked when all files are read.
    pub(super) fn gone(&mut self) -> Vec<Key> {
        let held: BTreeSet<Key> = self.files.values().filter_map(|file| file.key).collect();
        let gone: Vec<Key> = self.added.difference(&held).copied().collect();
        self.added = held;
        gone
    }

    /// What is wrong with files, each once until it was good.
    pub(super) fn complaints(&mut self, now: Instant) -> Vec<(OsString, String)> {
        let quiet = |(why, since): &(String, Instant)| {
            (now.saturating_duration_since(*since) >= QUIET).then(|| why.clone())
        };
        let mut all = Vec::new();
        for (name, file) in self.files.iter_mut().filter(|(_, file)| !file.told) {
            if let Some(why) = file.bad.as_ref().and_then(quiet) {
                file.told = true;
                all.push((name.clone(), why));
            }
        }
        all
    }

    /// When [`Plan::complaints`] has something next, if nothing changes.
    pub(super) fn next_complaint(&self, now: Instant) -> Option<Duration> {
        let untold = self.files.values().filter(|file| !file.told);
        let since = untold.filter_map(|file| file.bad.as_ref().map(|(_, since)| *since)).min()?;
        Some((since + QUIET).saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    /// A file and which state of it.
    type Listed = (&'static str, u64);

    fn listing(files: &[Listed]) -> BTreeMap<OsString, Stamp> {
        let stamp = |state| Stamp { len: 1, inode: (1, 1), modified: (state as i64, 0), changed: (0, 0) };
        files.iter().map(|(name, state)| (OsString::from(name), stamp(*state))).collect()
    }

    /// What a file holds that names no webseeds.
    fn one() -> Result<(Key, Vec<Seed>), String> {
        Ok(([1; 20], Vec::new()))
    }

    /// One look at the folder: what lies there; what is in the files that are read, 0 for rubbish; and what is to be
    /// read, added and removed.
    struct Row {
        there: &'static [Listed],
        holds: &'static [(&'static str, u8)],
        read: &'static [&'static str],
        add: &'static [u8],
        remove: &'static [u8],
    }

    fn play(plan: &mut Plan, row: &Row, touched: &[&str], now: Instant) {
        let touched: HashSet<OsString> = touched.iter().map(OsString::from).collect();
        let read = plan.seen(listing(row.there), &touched);
        assert_eq!(read, row.read.iter().map(OsString::from).collect::<Vec<_>>(), "to be read");
        let mut add = Vec::new();
        for name in read {
            let holds = row.holds.iter().find(|(file, _)| **file == name).expect("what it holds").1;
            let found =
                if holds == 0 { Err(format!("{name:?} is rubbish")) } else { Ok(([holds; 20], Vec::new())) };
            if plan.loaded(&name, found, |_| true, now) == Then::Add {
                add.push(holds);
            }
        }
        assert_eq!(plan.webseeds(), [], "none are named");
        assert_eq!(add, row.add, "to be added");
        let remove: Vec<u8> = plan.gone().into_iter().map(|key| key[0]).collect();
        assert_eq!(remove, row.remove, "to be removed");
    }

    #[test]
    fn what_appears_is_added_and_what_disappears_removed() {
        let rows = [
            Row { there: &[], holds: &[], read: &[], add: &[], remove: &[] },
            Row { there: &[("a", 1)], holds: &[("a", 1)], read: &["a"], add: &[1], remove: &[] },
            Row { there: &[("a", 1)], holds: &[], read: &[], add: &[], remove: &[] },
            // The same torrent in a second file, and another one in a third.
            Row {
                there: &[("a", 1), ("b", 1), ("c", 1)],
                holds: &[("b", 1), ("c", 2)],
                read: &["b", "c"],
                add: &[2],
                remove: &[],
            },
            // It stays with the last of them.
            Row { there: &[("b", 1), ("c", 1)], holds: &[], read: &[], add: &[], remove: &[] },
            // Renamed.
            Row { there: &[("b", 1), ("d", 1)], holds: &[("d", 2)], read: &["d"], add: &[], remove: &[] },
            // Replaced by another torrent, and written again as it was.
            Row {
                there: &[("b", 2), ("d", 2)],
                holds: &[("b", 3), ("d", 2)],
                read: &["b", "d"],
                add: &[3],
                remove: &[1],
            },
            // Exchanged.
            Row {
                there: &[("b", 3), ("d", 3)],
                holds: &[("b", 2), ("d", 3)],
                read: &["b", "d"],
                add: &[],
                remove: &[],
            },
            // Overwritten by rubbish: it stands for what it did.
            Row { there: &[("b", 4), ("d", 3)], holds: &[("b", 0)], read: &["b"], add: &[], remove: &[] },
            Row { there: &[("b", 4), ("d", 3)], holds: &[], read: &[], add: &[], remove: &[] },
            // And now for something else.
            Row { there: &[("b", 5), ("d", 3)], holds: &[("b", 4)], read: &["b"], add: &[4], remove: &[2] },
            // Rubbish from the beginning, good in the end.
            Row { there: &[("e", 1)], holds: &[("e", 0)], read: &["e"], add: &[], remove: &[3, 4] },
            Row { there: &[("e", 2)], holds: &[("e", 0)], read: &["e"], add: &[], remove: &[] },
            Row { there: &[("e", 3)], holds: &[("e", 5)], read: &["e"], add: &[5], remove: &[] },
            Row { there: &[], holds: &[], read: &[], add: &[], remove: &[5] },
            // The same name and look again, later.
            Row { there: &[("a", 1)], holds: &[("a", 1)], read: &["a"], add: &[1], remove: &[] },
        ];
        let (mut plan, now) = (Plan::default(), Instant::now());
        for (number, row) in rows.iter().enumerate() {
            println!("row {number}");
            play(&mut plan, row, &[], now);
        }
        // Something was done to it that its look doesn't tell.
        let row = Row { there: &[("a", 1)], holds: &[("a", 7)], read: &["a"], add: &[7], remove: &[1] };
        play(&mut plan, &row, &["a", "unheard of"], now);
    }

    #[test]
    fn each_bad_file_is_told_of_once_and_not_while_it_changes() {
        let (mut plan, start) = (Plan::default(), Instant::now());
        let at = |tenths: u64| start + Duration::from_millis(100 * tenths);
        // A row is a moment; which states of the file "a" begin then, good or not (none if it is as before); and whether
        // somebody is told then.
        type Row = (u64, Option<(u64, u8)>, bool);
        let rows: [Row; 12] = [
            (0, Some((1, 0)), false),
            (19, Some((2, 0)), false),
            (20, None, false),
            (38, None, false),
            (39, None, true),
            (80, None, false),
            // Another try, as bad.
            (81, Some((3, 0)), false),
            (120, None, false),
            // Good, and bad again: something new.
            (130, Some((4, 1)), false),
            (140, Some((5, 0)), false),
            (150, None, false),
            (160, None, true),
        ];
        for (tenths, state, told) in rows {
            if let Some((state, holds)) = state {
                assert_eq!(plan.seen(listing(&[("a", state)]), &HashSet::new()).len(), 1);
                let found =
                    if holds == 0 { Err("rubbish".to_owned()) } else { Ok(([holds; 20], Vec::new())) };
                plan.loaded("a".as_ref(), found, |_| true, at(tenths));
            }
            let next = plan.next_complaint(at(tenths));
            let complaints = plan.complaints(at(tenths));
            assert_eq!(!complaints.is_empty(), told, "at {tenths}");
            assert_eq!(next == Some(Duration::ZERO), told, "at {tenths}");
            assert!(complaints.iter().all(|(name, why)| name == "a" && why == "rubbish"));
        }
        assert_eq!(plan.next_complaint(at(500)), None);
        plan.seen(listing(&[]), &HashSet::new());
        assert!(plan.complaints(at(900)).is_empty());
    }

    #[test]
    fn a_torrent_that_could_not_be_added_is_tried_again_with_its_file() {
        let (mut plan, now) = (Plan::default(), Instant::now());
        let both = |state| listing(&[("a", state), ("b", state)]);
        plan.seen(both(1), &HashSet::new());
        assert_eq!(plan.loaded("a".as_ref(), one(), |_| true, now), Then::Add);
        plan.failed([1; 20], "no room", now);
        // The other file with it is another try.
        assert_eq!(plan.loaded("b".as_ref(), one(), |_| true, now), Then::Add);
        plan.failed([1; 20], "no room", now);
        assert!(plan.gone().is_empty());
        assert_eq!(plan.complaints(now + QUIET).len(), 2);
        assert_eq!(plan.seen(both(2), &HashSet::new()).len(), 2);
        assert_eq!(plan.loaded("a".as_ref(), one(), |_| true, now), Then::Add);
        assert_eq!(plan.loaded("b".as_ref(), one(), |_| true, now), Then::Extend);
        assert_eq!(plan.loaded("unheard of".as_ref(), one(), |_| true, now), Then::Nothing);
    }

    #[test]
    fn what_was_removed_otherwise_comes_back_when_its_file_is_touched() {
        let (mut plan, now) = (Plan::default(), Instant::now());
        let touched = HashSet::from([OsString::from("a")]);
        let look =
            |plan: &mut Plan, touched: &HashSet<OsString>| plan.seen(listing(&[("a", 1)]), touched).len();
        assert_eq!(look(&mut plan, &HashSet::new()), 1);
        assert_eq!(plan.loaded("a".as_ref(), one(), |_| false, now), Then::Add);
        assert!(plan.gone().is_empty());
        // Removed, and nobody was at its file.
        assert_eq!(look(&mut plan, &HashSet::new()), 0);
        assert_eq!(look(&mut plan, &touched), 1);
        assert_eq!(plan.loaded("a".as_ref(), one(), |key| key != [1; 20], now), Then::Add);
        assert!(plan.gone().is_empty());
        assert_eq!(look(&mut plan, &touched), 1);
        assert_eq!(plan.loaded("a".as_ref(), one(), |_| true, now), Then::Extend, "it is there");
    }

    #[test]
    fn what_is_put_off_is_read_again() {
        let (mut plan, now) = (Plan::default(), Instant::now());
        for _ in 0..3 {
            assert_eq!(plan.seen(listing(&[("a", 1)]), &HashSet::new()).len(), 1);
            assert_eq!(plan.loaded("a".as_ref(), one(), |_| false, now), Then::Add);
            plan.put_off([1; 20]);
            assert!(plan.gone().is_empty());
        }
    }

    #[test]
    fn the_files_of_a_torrent_name_its_webseeds_together() {
        let seed = |name: &str| Seed {
            url: format!("http://{}.example/", name.trim_start_matches('+')),
            kind: crate::webseed::Kind::Url,
            trusted: name.starts_with('+'),
        };
        let seeds = |names: &[&str]| names.iter().map(|name| seed(name)).collect::<Vec<_>>();
        // A row is what lies there, each file of another state with its torrent and the webseeds that it names (no file
        // of torrent 0 can be read); which are touched besides; whether torrents are there; and what is told then.
        type File = (&'static str, u64, u8, &'static [&'static str]);
        type Row<'a> = (&'a [File], &'a [&'a str], bool, &'a [(u8, &'a [&'a str])]);
        let rows: &[Row<'_>] = &[
            (&[("a", 1, 1, &["x", "y"]), ("b", 1, 2, &[])], &[], true, &[(1, &["x", "y"])]),
            (&[("a", 1, 1, &["x", "y"]), ("b", 1, 2, &[])], &[], true, &[]),
            // Somebody was at it.
            (&[("a", 1, 1, &["x", "y"]), ("b", 1, 2, &[])], &["a", "b"], true, &[(1, &["x", "y"])]),
            // Another file names one of them, too, and one more; its word reaches further.
            (
                &[("a", 1, 1, &["x", "y"]), ("b", 1, 2, &[]), ("c", 1, 1, &["+y", "z"])],
                &[],
                true,
                &[(1, &["x", "+y", "z"])],
            ),
            // The first is edited; then it can't be read, and stands for what it did.
            (
                &[("a", 2, 1, &["x"]), ("b", 1, 2, &[]), ("c", 1, 1, &["+y", "z"])],
                &[],
                true,
                &[(1, &["x", "+y", "z"])],
            ),
            (&[("a", 3, 0, &[]), ("b", 1, 2, &[]), ("c", 1, 1, &["+y", "z"])], &[], true, &[]),
            // It is another torrent now, and the other file is gone.
            (&[("a", 4, 2, &["x"]), ("b", 1, 2, &[])], &[], true, &[(1, &[]), (2, &["x"])]),
            // One that names nothing goes; the one that names it does.
            (&[("a", 4, 2, &["x"])], &[], true, &[]),
            (&[("b", 2, 2, &[])], &[], true, &[(2, &[])]),
            // Removed otherwise, it comes back with the touch and knows of none.
            (&[("b", 3, 2, &["x"])], &[], true, &[(2, &["x"])]),
            (&[("b", 4, 2, &["x"])], &[], false, &[(2, &["x"])]),
            (&[], &[], true, &[(2, &[])]),
        ];
        let (mut plan, now) = (Plan::default(), Instant::now());
        for (number, (there, touched, here, told)) in rows.iter().enumerate() {
            let listed: Vec<Listed> = there.iter().map(|(name, state, ..)| (*name, *state)).collect();
            let touched: HashSet<OsString> = touched.iter().map(OsString::from).collect();
            for name in plan.seen(listing(&listed), &touched) {
                let (.., torrent, names) =
                    there.iter().find(|(file, ..)| **file == name).expect("what it holds");
                let found = if *torrent == 0 {
                    Err("rubbish".to_owned())
                } else {
                    Ok(([*torrent; 20], seeds(names)))
                };
                plan.loaded(&name, found, |_| *here, now);
            }
            let expected: Vec<_> =
                told.iter().map(|(torrent, names)| ([*torrent; 20], seeds(names))).collect();
            assert_eq!(plan.webseeds(), expected, "row {number}");
            plan.gone();
        }
    }
}
