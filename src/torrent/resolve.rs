//! The part of a torrent's state that fetches the metadata from peers (BEP 9), and gives it to those who ask.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use bytes::Bytes;

use super::effects::Effect;
use crate::hash;
use crate::peer::PeerKey;
use crate::peer::metadata::{self, MetadataAssembly, MetadataMessage, Received};

/// See the module's text.
#[derive(Debug)]
pub(super) struct Resolve {
    /// What the SHA-1 of the metadata must be.
    info_hash: [u8; 20],
    assembly: MetadataAssembly<PeerKey>,
    /// By peer that has metadata: its number for our messages.
    ids: BTreeMap<PeerKey, u8>,
    /// Peers that let us in before we knew the torrent.
    unchoked: BTreeSet<PeerKey>,
    done: bool,
}

impl Resolve {
    pub(super) fn new(info_hash: [u8; 20]) -> Self {
        Self {
            info_hash,
            assembly: MetadataAssembly::new(),
            ids: BTreeMap::new(),
            unchoked: BTreeSet::new(),
            done: false,
        }
    }

    /// The metadata is known: nothing more is asked for.
    pub(super) fn finish(&mut self) {
        self.done = true;
        self.ids.clear();
        self.assembly = MetadataAssembly::new();
    }

    pub(super) fn is_wanted(&self) -> bool {
        !self.done
    }

    /// Whether a peer owes us a part of the metadata: then time matters.
    pub(super) fn is_waiting(&self) -> bool {
        !self.done && !self.ids.is_empty()
    }

    pub(super) fn is_choked(&self, key: PeerKey) -> bool {
        !self.unchoked.contains(&key)
    }

    pub(super) fn set_choked(&mut self, key: PeerKey, choked: bool) {
        if choked {
            self.unchoked.remove(&key);
        } else {
            self.unchoked.insert(key);
        }
    }

    pub(super) fn remove_peer(&mut self, key: PeerKey) {
        self.unchoked.remove(&key);
        if self.ids.remove(&key).is_some() {
            self.assembly.gone(key);
        }
    }

    /// A peer has metadata of this many bytes.
    pub(super) fn add_peer(&mut self, key: PeerKey, size: u32, id: u8) {
        if !self.done && self.assembly.announce(key, size) {
            self.ids.insert(key, id);
        }
    }

    /// Bytes of the metadata that are here, and in all.
    pub(super) fn progress(&self) -> Option<(u32, u32)> {
        if self.done { None } else { self.assembly.progress() }
    }

    /// Asks each peer for what it may be asked now.
    pub(super) fn ask(&mut self, now: Instant, fx: &mut Vec<Effect>) {
        if self.done {
            return;
        }
        for (key, id) in &self.ids {
            for piece in self.assembly.next_requests(*key, now) {
                fx.push(Effect::Extended(*key, *id, MetadataMessage::Request(piece).encode()));
            }
        }
    }

    /// A metadata message came from a peer whose number for such messages is `their_id`. `raw` is the
    /// metadata, if we have it.
    pub(super) fn said(
        &mut self,
        key: PeerKey,
        payload: &Bytes,
        raw: Option<&Bytes>,
        their_id: Option<u8>,
        now: Instant,
        fx: &mut Vec<Effect>,
    ) {
        let message = match MetadataMessage::decode(payload) {
            Ok(Some(message)) => message,
            Ok(None) => return,
            Err(error) => return fx.push(Effect::Disconnect(key, error.to_string())),
        };
        match message {
            MetadataMessage::Request(piece) => {
                if let Some(id) = their_id {
                    fx.push(Effect::Extended(key, id, metadata::serve(raw, piece).encode()));
                }
            }
            MetadataMessage::Reject(piece) => self.assembly.rejected(key, piece, now),
            MetadataMessage::Data { piece, total, bytes } if !self.done => {
                let want = self.info_hash;
                let came = self.assembly.received(key, piece, total, &bytes, now, |b| hash::sha1(b) == want);
                let blame = match came {
                    Received::Useful | Received::Unwanted => Vec::new(),
                    Received::Complete { info, blame } => {
                        self.finish();
                        fx.push(Effect::GotMetadata(info.to_vec()));
                        blame
                    }
                    Received::Failed { blame } => blame,
                };
                for liar in blame {
                    self.ids.remove(&liar);
                    fx.push(Effect::Disconnect(liar, "it sent wrong metadata".into()));
                }
            }
            MetadataMessage::Data { .. } => {}
        }
        self.ask(now, fx);
    }
}
