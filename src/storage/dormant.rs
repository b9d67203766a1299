//! What lies in the cache folder and isn't mounted: how much it takes, and whether it may be removed. Pure.
//!
//! **Goal.** A torrent that is being opened is never removed under the hands of whoever opens it, and what it takes is
//! counted at every moment, by whoever has it.
//!
//! **Flow.** A scan of the folder says what is there ([`Ledger::found`]). Who opens a torrent claims it; what it took
//! stays counted until its owner has counted by itself ([`Ledger::settle`]). Who needs room takes the least recently
//! used one ([`Ledger::take_oldest`]): from then until [`Ledger::removed`] nobody can claim it.
//!
//! **Not here.** The scan and the removal ([`super::catalog`]), and the account ([`super::quota`]).

use std::collections::BTreeMap;

/// How a torrent in the folder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nobody has it.
    Dormant {
        bytes: u64,
        last_used: i64,
        /// It could not be removed: it stays.
        stays: bool,
    },
    /// It is being opened; it is charged for here until its owner does.
    Claimed { bytes: u64 },
    /// Its owner has charged for it.
    Settled,
    /// It is being removed.
    Removing { bytes: u64, last_used: i64 },
}

/// The list. Keys are info-hashes in lower-case hex.
#[derive(Debug, Default)]
pub struct Ledger {
    torrents: BTreeMap<String, State>,
}

impl Ledger {
    /// A scan has found a torrent that takes so many bytes and was used last then, in seconds since the epoch. How
    /// many bytes are to be charged for it: none when its owner has, or when it was found before.
    pub fn found(&mut self, key: &str, bytes: u64, last_used: i64) -> u64 {
        let key = key.to_ascii_lowercase();
        match self.torrents.get_mut(&key) {
            None => {
                self.torrents.insert(key, State::Dormant { bytes, last_used, stays: false });
                bytes
            }
            Some(State::Claimed { bytes: counted }) if *counted == 0 => {
                *counted = bytes;
                bytes
            }
            Some(State::Claimed { .. } | State::Dormant { .. } | State::Settled | State::Removing { .. }) => {
                0
            }
        }
    }

    /// A torrent is about to be opened. False when it is being removed just now: to be tried again after that.
    pub fn claim(&mut self, key: &str) -> bool {
        let key = key.to_ascii_lowercase();
        let claimed = match self.torrents.get(&key) {
            None => State::Claimed { bytes: 0 },
            Some(State::Dormant { bytes, .. }) => State::Claimed { bytes: *bytes },
            Some(State::Claimed { .. } | State::Settled) => return true,
            Some(State::Removing { .. }) => return false,
        };
        self.torrents.insert(key, claimed);
        true
    }

    /// A torrent's owner has charged for what is there. How many bytes are to be released for it.
    pub fn settle(&mut self, key: &str) -> u64 {
        match self.torrents.insert(key.to_ascii_lowercase(), State::Settled) {
            Some(State::Claimed { bytes } | State::Dormant { bytes, .. }) => bytes,
            None | Some(State::Settled | State::Removing { .. }) => 0,
        }
    }

    /// Takes the least recently used torrent that takes at least `least` bytes, to be removed; its key. Then
    /// [`Ledger::removed`] or [`Ledger::stays`].
    pub fn take_oldest(&mut self, least: u64) -> Option<String> {
        let candidates = self.torrents.iter().filter_map(|(key, state)| match *state {
            State::Dormant { bytes, last_used, stays: false } if bytes >= least => {
                Some(((last_used, key), bytes))
            }
            _ => None,
        });
        let ((last_used, key), bytes) = candidates.min()?;
        let key = key.clone();
        self.torrents.insert(key.clone(), State::Removing { bytes, last_used });
        Some(key)
    }

    /// It is gone. How many bytes are to be released.
    pub fn removed(&mut self, key: &str) -> u64 {
        match self.torrents.remove(key) {
            Some(State::Removing { bytes, .. }) => bytes,
            Some(other) => {
                self.torrents.insert(key.to_owned(), other);
                0
            }
            None => 0,
        }
    }

    /// It could not be removed, and takes `bytes` now. It isn't tried again. How many bytes are to be released.
    pub fn stays(&mut self, key: &str, bytes: u64) -> u64 {
        let Some(State::Removing { bytes: before, last_used }) = self.torrents.get(key).copied() else {
            return 0;
        };
        let bytes = bytes.min(before);
        self.torrents.insert(key.to_owned(), State::Dormant { bytes, last_used, stays: true });
        before - bytes
    }
}
