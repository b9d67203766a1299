//! What the picker knows of a piece, for diagnostics. A part of [`Picker`]; changes nothing.

use std::collections::BTreeMap;

use super::{Block, Picker};
use crate::metainfo::geometry::PieceIndex;
use crate::peer::PeerKey;

/// The blocks of a piece in the making.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PartsView {
    /// All of them.
    pub blocks: usize,
    /// Those that are here.
    pub here: usize,
    /// Those that were asked for and aren't here yet.
    pub requested: usize,
    /// Those that were taken back and may come all the same.
    pub recalled: usize,
    /// Its hash is being computed.
    pub verifying: bool,
    /// One peer is to deliver all of it, and who that is, if it is decided: blocks of several made a bad piece.
    pub alone: Option<Option<PeerKey>>,
    /// Whom blocks were asked of, and how many.
    pub asked: Vec<(PeerKey, usize)>,
}

impl Picker {
    /// The blocks of a piece, if any of it was asked for. Costs a look at each block.
    pub fn parts_view(&self, index: PieceIndex) -> Option<PartsView> {
        let piece = self.pieces.get(&index)?;
        let parts = piece.parts.as_ref()?;
        let mut view = PartsView {
            blocks: parts.blocks.len(),
            verifying: piece.verifying,
            alone: piece.alone.then_some(piece.sole),
            ..PartsView::default()
        };
        let mut asked: BTreeMap<PeerKey, usize> = BTreeMap::new();
        for block in &parts.blocks {
            match block {
                Block::Missing => {}
                Block::Requested(peers) => {
                    view.requested += 1;
                    peers.iter().for_each(|peer| *asked.entry(*peer).or_default() += 1);
                }
                Block::Recalled(_) => view.recalled += 1,
                Block::Received(_) => view.here += 1,
            }
        }
        view.asked = asked.into_iter().collect();
        Some(view)
    }

    /// Pieces that somebody wants, and those of them with blocks that nobody was asked for.
    pub fn counts(&self) -> (usize, usize) {
        let wanted = self.pieces.values().filter(|piece| !piece.demands.is_empty()).count();
        (wanted, self.open.len())
    }
}
